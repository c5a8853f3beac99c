//go:build tools

package vault

import _ "github.com/hashicorp/vault/api" // the product's choice of client
