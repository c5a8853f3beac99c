// Package audit is what stands on the ledger's Merkle log: signed checkpoints,
// exports that verify with no broker at hand, and sinks that follow the ledger
// with cursors of their own.
//
// The ledger writes the leaves and the stored hashes, with the functions of
// package tree; this package only reads them, through [Source]. It must know
// nothing of raft, of the store, or of what a command means: the few fields that
// people want to see come with each [Entry], and [Options.Describe] lets a
// verifier that does know commands check them.
//
// What it proves, and what not: a checkpoint signed by a key you trust fixes every
// entry before it, in order, for ever. It cannot show that what happened was
// recorded (law 5 and its tests are for that), nor that two parties were not shown
// two different logs: for that compare checkpoints, or want a quorum of nodes'
// signatures.
package audit

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// Limits, each with its reason.
const (
	// MaxLine bounds one line of an export or a sink's file, newline included:
	// twice the largest command the ledger takes.
	MaxLine = 2 << 20
	// MaxKeys bounds the verifier keys an export may name: a cluster has five
	// nodes, and each may change its key a few times.
	MaxKeys = 64
	// MaxCheckpoint bounds a signed checkpoint: its text and MaxKeys signatures.
	MaxCheckpoint = 32 << 10
)

// Summary is what people look for in an entry. It is the command's own content,
// repeated so that nobody needs to parse commands; only a [Describer] can tell
// whether it was repeated truly.
type Summary struct {
	// Time is the ledger's, in UTC; it never decreases from entry to entry.
	Time time.Time
	// Type is the command's type, such as "lease.open".
	Type string
	// Actor is the principal on whose behalf it was proposed; "" for the broker.
	Actor string
	// DecisionID names the decision that led to it; "" where policy had no part.
	DecisionID string
}

// An Entry is one command of the ledger and what became of it.
type Entry struct {
	// Seq counts from 0 without gaps.
	Seq int64
	Summary
	// Result is the code that applying the command gave: "ok", or a refusal's.
	Result string
	// Command is the raw bytes that were replicated.
	Command []byte
}

// A Describer reads a command's summary out of its raw bytes.
type Describer func(result string, command []byte) (Summary, error)

// A Feed is a log that can be followed.
type Feed interface {
	// Size is the number of entries that are committed.
	Size(ctx context.Context) (int64, error)
	// Entry returns one; a [fault.NotFound] when seq is not below Size, or has
	// been dropped after its retention.
	Entry(ctx context.Context, seq int64) (Entry, error)
}

// A Source is a log that can be exported and verified.
type Source interface {
	Feed
	// ReadHashes reads the tree's stored hashes.
	tlog.HashReader
	// Checkpoint returns the newest signed checkpoint, at most MaxCheckpoint bytes.
	Checkpoint(ctx context.Context) ([]byte, error)
}

// A Defect says what is wrong with a log and where.
type Defect struct {
	// Line is the line of the export, from 1; 0 for the live log.
	Line int64
	// Seq is the entry; -1 where the defect is not one entry's.
	Seq int64
	// Code is stable: malformed, line_too_long, header, truncated, trailing,
	// sequence, time, leaf, summary, checkpoint, signature, proof, root, fork.
	Code string
	// Detail is a sentence or two for a person.
	Detail string
}

// Error implements error.
func (d *Defect) Error() string {
	var where []string
	if d.Line > 0 {
		where = append(where, fmt.Sprintf("line %d", d.Line))
	}
	if d.Seq >= 0 {
		where = append(where, fmt.Sprintf("entry %d", d.Seq))
	}
	if len(where) == 0 {
		return d.Detail
	}
	return strings.Join(where, ", ") + ": " + d.Detail
}

// fault wraps d for callers: kind internal (exit code 1), code audit_<Code>.
func (d *Defect) fault() error {
	return fault.Wrap(d, fault.Internal, "audit_"+d.Code, "%s", d.Error())
}

func invalid(detail string, args ...any) error {
	return fault.New(fault.Invalid, "", detail, args...)
}

const originPrefix = "mayfly-audit/"

// Origin is the first line of every checkpoint of one incarnation of a cluster:
// mayfly-audit/<cluster id>/<incarnation>. A cluster restored from a snapshot is
// a new incarnation, so that its log is never taken for the old one's (HAZARDS 19).
func Origin(clusterID string, incarnation uint64) string {
	return originPrefix + clusterID + "/" + strconv.FormatUint(incarnation, 10)
}

// ParseOrigin is the inverse of Origin; false for what is none.
func ParseOrigin(origin string) (clusterID string, incarnation uint64, ok bool) {
	rest, ok := strings.CutPrefix(origin, originPrefix)
	clusterID, number, cut := strings.Cut(rest, "/")
	if !ok || !cut || clusterID == "" {
		return "", 0, false
	}
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil || Origin(clusterID, n) != origin {
		return "", 0, false
	}
	return clusterID, n, true
}
