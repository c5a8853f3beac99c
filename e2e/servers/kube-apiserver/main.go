// Command kube-apiserver is the API server of Kubernetes as its own project builds
// it, for the tests of the kind kubernetes: no package of the systems they run on
// has it. It is a test process alone; nothing of it reaches the product.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() { os.Exit(cli.Run(app.NewAPIServerCommand())) }
