// Google's own descriptions of its interfaces come with this module: discovery
// documents, against which what Mayfly sends and takes is held. Nothing of it is
// built, or part of the product.
module github.com/mayfly-broker/mayfly/e2e/schemas/google

go 1.26

require google.golang.org/api v0.251.0
