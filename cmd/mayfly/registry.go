package main

import (
	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/aws"
	"github.com/mayfly-broker/mayfly/issuers/azure"
	"github.com/mayfly-broker/mayfly/issuers/gcp"
	"github.com/mayfly-broker/mayfly/issuers/github"
	"github.com/mayfly-broker/mayfly/issuers/jwt"
	"github.com/mayfly-broker/mayfly/issuers/kubernetes"
	"github.com/mayfly-broker/mayfly/issuers/kv"
	"github.com/mayfly-broker/mayfly/issuers/mysql"
	"github.com/mayfly-broker/mayfly/issuers/nats"
	"github.com/mayfly-broker/mayfly/issuers/postgres"
	"github.com/mayfly-broker/mayfly/issuers/rabbitmq"
	"github.com/mayfly-broker/mayfly/issuers/redis"
	"github.com/mayfly-broker/mayfly/issuers/ssh"
	"github.com/mayfly-broker/mayfly/issuers/vault"
	"github.com/mayfly-broker/mayfly/issuers/x509"
)

// targetKinds is every kind of target that this build can mint on. A new kind
// is its folder under issuers and one line here.
func targetKinds() []issuers.Kind {
	return []issuers.Kind{
		postgres.Kind{},
		mysql.Kind{},
		jwt.Kind{},
		x509.Kind{},
		ssh.Kind{},
		redis.Kind{},
		aws.Kind{},
		rabbitmq.Kind{},
		nats.Kind{},
		kubernetes.Kind{},
		vault.Kind{},
		kv.Kind{},
		github.New(),
		gcp.Kind{},
		azure.Kind{},
	}
}
