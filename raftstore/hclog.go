package raftstore

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// newHCLog returns a logger for raft and its stores that writes to log.
func newHCLog(log *slog.Logger) hclog.Logger {
	level := hclog.Error
	for _, l := range []hclog.Level{hclog.Warn, hclog.Info, hclog.Debug} {
		if log.Enabled(context.Background(), slogLevel(l)) {
			level = l
		}
	}
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Output: io.Discard, Level: hclog.Off})
	l.RegisterSink(&hclogSink{log, level})
	return l
}

// hclogSink hands log lines on. raft's everyday "info" is our "debug": it tells
// of each step of each election.
type hclogSink struct {
	log   *slog.Logger
	level hclog.Level
}

func slogLevel(l hclog.Level) slog.Level {
	switch l {
	case hclog.Error:
		return slog.LevelError
	case hclog.Warn:
		return slog.LevelWarn
	default:
		return slog.LevelDebug
	}
}

// Accept implements [hclog.SinkAdapter].
func (s *hclogSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	if level < s.level {
		return
	}
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			args[i] = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
	}
	s.log.Log(context.Background(), slogLevel(level), "raft: "+msg, args...)
}
