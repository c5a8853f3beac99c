// The demo shows Mayfly's main job on a real PostgreSQL, step by step: it runs
// the built binary's own commands and prints each with its real output. Every
// step is checked, so that the demo is a test too; whatever does not behave as
// its sentence says ends it with a non-zero code.
//
// It knows the product by its command line alone: nothing of broker or client
// is imported.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/term"
)

// limit bounds the whole demo; a good machine needs a few seconds of it.
const limit = 3 * time.Minute

func main() {
	binary := flag.String("mayfly", "", "the binary to show (default bin/mayfly, built if it is missing)")
	approval := flag.Bool("approval", false, "show a grant that two people co-sign instead of the main job")
	flag.Parse()
	tell := (*stage).story
	if *approval {
		tell = (*stage).approval
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := run(ctx, *binary, newTeller(os.Stdout, coloured(os.Stdout)), tell); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		stop()
		os.Exit(1)
	}
}

// run shows everything and ends what it started, whatever happened.
func run(ctx context.Context, binary string, t *teller, tell func(*stage, context.Context) error) (err error) {
	if binary == "" {
		if binary, err = build(ctx, t); err != nil {
			return err
		}
	}
	s, err := open(ctx, binary, t)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := tell(s, ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return fmt.Errorf("interrupted (%w); everything that was started is being ended", cause)
		}
		return err
	}
	return nil
}

// coloured reports whether f is a terminal that wants colours (no-color.org).
func coloured(f *os.File) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}

// repository finds the directory of go.mod above the current one.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("the demo runs inside the repository: there is no go.mod here or above")
		}
		dir = up
	}
}
