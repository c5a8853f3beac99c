package client_test

import (
	"context"
	"fmt"
	"os"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// A workload that takes its settings from the environment, works in a task of
// its own, and withdraws everything by ending it.
func Example() {
	if err := report(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func report(ctx context.Context) (err error) {
	cfg, err := client.FromEnvironment(os.LookupEnv)
	if err != nil {
		return err
	}
	c, err := client.New(cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	task, err := c.StartTask(ctx, wire.StartTaskRequest{Name: "report", Purpose: "monthly figures", Lapse: "2m"})
	if err != nil {
		return err
	}
	defer func() {
		if _, endErr := c.EndTask(ctx, task.ID, 0); err == nil {
			err = endErr
		}
	}()
	access, err := c.Request(ctx, wire.AccessRequest{Role: "orders/readonly", Task: task.ID})
	if err != nil {
		return err
	}
	return work(access.Credential["url"])
}

func work(string) error { return nil }
