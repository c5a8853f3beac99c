// Command minio is the S3 and STS server that the tests of issuers/aws start. It is
// a module of its own, so that nothing of it is in ours; it is a test process only.
package main

import (
	"os"

	minio "github.com/minio/minio/cmd"
)

func main() { minio.Main(os.Args) }
