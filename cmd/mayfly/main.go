package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(run()) }

// run is main with an exit code. An interrupt cancels the context of whatever
// runs; `exec` takes signals over for its child.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := &shell{in: os.Stdin, out: os.Stdout, err: os.Stderr, lookup: os.LookupEnv, releaseSignals: stop}
	return s.run(ctx, os.Args)
}
