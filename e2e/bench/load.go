package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// outcome is what one cell came to.
type outcome struct {
	rate     float64 // done per second
	p50, p99 time.Duration
	done     int
	// CPU time of one, all nodes together and in this process; 0 if not measured.
	node, client time.Duration
}

func (o outcome) quantiles() string {
	text := fmt.Sprintf("p50 %s, p99 %s", short(o.p50), short(o.p99))
	if o.node > 0 {
		text += fmt.Sprintf("; CPU: nodes %s, client %s", short(o.node), short(o.client))
	}
	return text
}

// drive has clients do something over and over for d, each as soon as its last
// is done, and measures. Each does it once before, unmeasured, so that
// connections and sessions stand. Any error ends the cell: a figure with
// refusals in it would say nothing.
func drive(ctx context.Context, clients int, d time.Duration, do func(ctx context.Context, client int) error) (outcome, error) {
	if err := each(ctx, clients, clients, do); err != nil {
		return outcome{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	all := make([][]time.Duration, clients)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range clients {
		wg.Go(func() {
			for ctx.Err() == nil && time.Since(began) < d {
				at := time.Now()
				if err := do(ctx, i); err != nil {
					cancel(err)
					return
				}
				all[i] = append(all[i], time.Since(at))
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(began)
	if ctx.Err() != nil {
		return outcome{}, context.Cause(ctx)
	}
	return summarise(slices.Concat(all...), elapsed), nil
}

func summarise(took []time.Duration, elapsed time.Duration) outcome {
	o := outcome{done: len(took), rate: float64(len(took)) / elapsed.Seconds()}
	if len(took) > 0 {
		slices.Sort(took)
		o.p50, o.p99 = took[len(took)/2], took[len(took)*99/100]
	}
	return o
}

// each does something n times, spread over workers, and returns the first error.
func each(ctx context.Context, n, workers int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(n, workers) {
		wg.Go(func() {
			for i := range next {
				if err := do(ctx, i); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	func() {
		defer close(next)
		for i := range n {
			select {
			case next <- i:
			case <-ctx.Done():
				return
			}
		}
	}()
	wg.Wait()
	return context.Cause(ctx)
}

// poll tries until it succeeds, without a pause worth speaking of, and returns
// the last error when within is over.
func poll(ctx context.Context, within time.Duration, try func(ctx context.Context) error) error {
	return pollEvery(ctx, within, 2*time.Millisecond, try)
}

// pollEvery is poll with a pause between one try and the next.
func pollEvery(ctx context.Context, within, pause time.Duration, try func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

func median(list []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(list))
	if len(s) == 0 {
		return 0
	}
	return s[len(s)/2]
}
