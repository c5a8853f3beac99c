package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/mayfly-broker/mayfly/broker/audit/tree"
	"github.com/mayfly-broker/mayfly/broker/fault"
)

// Options says whom a verifier trusts and what it knows already. The zero value
// trusts the keys that an export itself names, and the report says so.
type Options struct {
	// Trusted are verifier keys had from elsewhere than the export. When there
	// are any, only they count.
	Trusted []string
	// Quorum is how many different keys must have signed; less than 1 means 1.
	Quorum int
	// Known are checkpoints seen before and trusted: a log that does not agree
	// with them has been rewritten. Those of other logs, or of sizes the export
	// does not reach, are counted in [Report.KnownUnreached].
	Known []Checkpoint
	// Describe checks the summary fields against the commands; without it they
	// are only what the export claims.
	Describe Describer
	// Follow, where set, is handed each entry of an export once it has passed the
	// checks above, with the sequence at which the export ends; the signature is
	// checked after the last one. Its error ends the verification.
	Follow func(e Entry, to int64) error
}

// A Report says what was verified, and what was not.
type Report struct {
	Checkpoint Checkpoint
	// ClusterID and Incarnation are the signed origin's.
	ClusterID   string
	Incarnation uint64
	// The entries [From, To) were verified.
	From, To int64
	// RootFrom and RootTo are the roots of the log at From and To: an earlier
	// export that ended at From must have had RootFrom as its RootTo.
	RootFrom, RootTo tlog.Hash
	// First and Last are the times of the first and the last entry; zero without any.
	First, Last time.Time
	// SignedBy names the keys whose signatures were checked.
	SignedBy []string
	// Pinned is true when those keys were given from outside.
	Pinned bool
	// SummariesChecked is true when time, type, actor and decision id were read
	// again out of the commands. Result and command are always proven.
	SummariesChecked bool
	// KnownMatched and KnownUnreached count Options.Known.
	KnownMatched, KnownUnreached int
	// Next is where the next part of a live log begins; 0 once its end is reached.
	Next int64
	// Unsigned is how many entries of a live log are newer than its checkpoint:
	// they match the tree, and nobody has signed that yet.
	Unsigned int64
}

// Caveats says in sentences what the verification does not prove; none if nothing.
func (r Report) Caveats() []string {
	var out []string
	if !r.Pinned {
		out = append(out, "Signature by a key the file itself names: whoever could rewrite the file could have signed it. Give the cluster's verifier keys to be sure.")
	}
	if !r.SummariesChecked {
		out = append(out, "The fields time, type, actor and decision_id were not compared with the commands; result and command were.")
	}
	if r.From > 0 || r.To < r.Checkpoint.Size {
		out = append(out, fmt.Sprintf("A part of the log: entries %d up to %d of %d.", r.From, r.To, r.Checkpoint.Size))
	}
	if r.KnownUnreached > 0 {
		out = append(out, fmt.Sprintf("%d known checkpoints could not be compared: another log, or another size.", r.KnownUnreached))
	}
	if r.Unsigned > 0 {
		out = append(out, fmt.Sprintf("The newest %d entries are not under a signed checkpoint yet.", r.Unsigned))
	}
	return out
}

// VerifyExport checks an export with no broker at hand: every line's form, every
// leaf, the sequence without a gap, times that never decrease, the root, and the
// signature under it. Memory is bounded by [MaxLine]. Errors: a [*Defect] that
// says which line is wrong and why; a [fault.Invalid] for bad options; what r
// returned.
func VerifyExport(r io.Reader, opts Options) (Report, error) {
	trusted, err := ParseKeys(opts.Trusted)
	if err != nil {
		return Report{}, err
	}
	v := &exportVerifier{lines: newLineReader(r), opts: opts, keys: trusted}
	if err := v.run(); err != nil {
		var d *Defect
		var f *fault.Error
		switch {
		case errors.As(err, &d):
			return v.report, d.fault()
		case errors.As(err, &f):
			return v.report, err
		}
		return v.report, fault.Wrap(err, fault.Internal, "", "The export could not be read to its end.")
	}
	return v.report, nil
}

type exportVerifier struct {
	lines  *lineReader
	opts   Options
	keys   []note.Verifier
	header headerLine
	report Report
	walk   walker
}

func (v *exportVerifier) run() error {
	if err := v.readHeader(); err != nil {
		return err
	}
	for seq := v.header.From; seq < v.header.To; seq++ {
		if err := v.readEntry(seq); err != nil {
			return err
		}
	}
	if err := v.readClosing(); err != nil {
		return err
	}
	switch _, err := v.lines.next(); {
	case errors.Is(err, io.EOF):
		return nil
	case err == nil, errors.Is(err, errLineTooLong), errors.Is(err, errNoNewline):
		return v.defect("trailing", "There is more after the closing line.")
	default:
		return err
	}
}

// defect is a Defect at the line read last.
func (v *exportVerifier) defect(code, detail string, args ...any) *Defect {
	if len(args) > 0 {
		detail = fmt.Sprintf(detail, args...)
	}
	return &Defect{Line: v.lines.n, Seq: -1, Code: code, Detail: detail}
}

// line reads the next line; what names it in messages.
func (v *exportVerifier) line(what string) ([]byte, error) {
	line, err := v.lines.next()
	switch {
	case errors.Is(err, io.EOF):
		return nil, v.defect("truncated", "The export ends here; %s is missing.", what)
	case errors.Is(err, errNoNewline):
		return nil, v.defect("truncated", "The export ends in the middle of a line (%s).", what)
	case errors.Is(err, errLineTooLong):
		return nil, v.defect("line_too_long", "The line is longer than %d bytes.", MaxLine)
	}
	return line, err
}

func (v *exportVerifier) readHeader() error {
	line, err := v.line("the header")
	if err != nil {
		return err
	}
	h := &v.header
	if err := decodeLine(line, h); err != nil {
		return v.defect("malformed", "The header is not in the form it was written in: not an export, or altered.")
	}
	if h.Format != Format {
		return v.defect("header", "The format is %s; this program reads %s.", quote(h.Format), Format)
	}
	if h.From < 0 || h.To < h.From || h.To > tree.MaxSeq {
		return v.defect("header", "The header's range %d to %d cannot be.", h.From, h.To)
	}
	span, err := tree.NewSpan(h.From, h.Left)
	if err != nil {
		return v.defect("proof", "The hashes of the entries before %d are not as many as they must be.", h.From)
	}
	if v.report.Pinned = len(v.keys) > 0; !v.report.Pinned {
		if v.keys, err = ParseKeys(h.Keys); err != nil {
			return v.defect("header", "The header's keys cannot be read: %s", fault.As(err).Detail)
		}
	}
	v.walk = newWalker(span, v.opts, Origin(h.Cluster, h.Incarnation))
	v.report.From, v.report.To, v.report.RootFrom = h.From, h.To, span.Root()
	return nil
}

func (v *exportVerifier) readEntry(seq int64) error {
	line, err := v.line(fmt.Sprintf("entry %d", seq))
	if err != nil {
		return err
	}
	if bytes.HasPrefix(line, closingPrefix) {
		return v.defect("sequence", "Entries %d to %d are missing before the closing line.", seq, v.header.To-1)
	}
	var l entryLine
	if err := decodeLine(line, &l); err != nil {
		return v.defect("malformed", "The line is not in the form it was written in: altered or damaged. Entry %d is due here.", seq)
	}
	e, err := l.entry()
	if err != nil {
		return v.defect("malformed", "The line's time or command is not in the form it was written in. Entry %d is due here.", seq)
	}
	if d := v.walk.entry(seq, e, &l.Leaf); d != nil {
		d.Line = v.lines.n
		return d
	}
	if v.opts.Follow != nil {
		return v.opts.Follow(e, v.header.To)
	}
	return nil
}

func (v *exportVerifier) readClosing() error {
	line, err := v.line("the closing line with the checkpoint")
	if err != nil {
		return err
	}
	var c closingLine
	if !bytes.HasPrefix(line, closingPrefix) {
		return v.defect("sequence", "More entries than the header announces: the closing line is due here.")
	}
	if err := decodeLine(line, &c); err != nil {
		return v.defect("malformed", "The closing line is not in the form it was written in: altered or damaged.")
	}
	signed, err := OpenCheckpoint([]byte(c.Checkpoint), v.keys, v.opts.Quorum)
	if err != nil {
		f := fault.As(err)
		code := "checkpoint"
		if f.Code == "audit_signature" {
			code = "signature"
		}
		return v.defect(code, "%s", f.Detail)
	}
	if signed.Origin != v.walk.origin {
		return v.defect("checkpoint", "The checkpoint is of another log: %s, where the header says %s.", quote(signed.Origin), quote(v.walk.origin))
	}
	if _, _, ok := ParseOrigin(signed.Origin); !ok {
		return v.defect("checkpoint", "The checkpoint's origin is not one of this program's.")
	}
	if v.header.To > signed.Size {
		return v.defect("checkpoint", "The checkpoint covers %d entries; the export goes up to %d.", signed.Size, v.header.To)
	}
	v.report.RootTo = v.walk.span.Root()
	if d := v.walk.compareKnown(); d != nil {
		d.Line = v.lines.n
		return d
	}
	if err := v.walk.span.Close(signed.Size, c.Right); err != nil {
		return v.defect("proof", "The hashes of the entries from %d on are not as many as they must be.", v.header.To)
	}
	if d := v.walk.finish(signed, &v.report); d != nil {
		d.Line = v.lines.n
		return d
	}
	return nil
}

// walker checks entries in order; it is what VerifyExport and VerifyLive share.
type walker struct {
	span   *tree.Span
	origin string
	opts   Options
	known  map[int64][]tlog.Hash
	left   int // known checkpoints not compared yet, and never to be
	match  int
	first  time.Time
	last   time.Time
}

func newWalker(span *tree.Span, opts Options, origin string) walker {
	w := walker{span: span, origin: origin, opts: opts, known: map[int64][]tlog.Hash{}, left: len(opts.Known)}
	for _, c := range opts.Known {
		if c.Origin == origin {
			w.known[c.Size] = append(w.known[c.Size], c.Root)
		}
	}
	return w
}

// entry checks one entry, due at seq, and adds its leaf. claimed, if any, is the
// leaf hash that stands beside it.
func (w *walker) entry(seq int64, e Entry, claimed *tlog.Hash) *Defect {
	bad := func(code, detail string, args ...any) *Defect {
		return &Defect{Seq: e.Seq, Code: code, Detail: fmt.Sprintf(detail, args...)}
	}
	switch {
	case e.Seq > seq:
		return bad("sequence", "Entry %d is due here: %d missing, or out of order.", seq, e.Seq-seq)
	case e.Seq < seq:
		return bad("sequence", "Entry %d is due here: this one is repeated or out of order.", seq)
	}
	leaf := tree.LeafHash(tree.LeafData(e.Result, e.Command))
	if claimed != nil && leaf != *claimed {
		return bad("leaf", "The leaf hash does not fit result and command: one of the three was altered.")
	}
	if e.Time.Before(w.last) {
		return bad("time", "The time %s is before that of the entry before it, %s.", formatTime(e.Time), formatTime(w.last))
	}
	if w.opts.Describe != nil {
		s, err := w.opts.Describe(e.Result, e.Command)
		if err != nil {
			return bad("summary", "The command cannot be read: %s", quote(err.Error()))
		}
		if s.Time = s.Time.UTC(); s.Type != e.Type || s.Actor != e.Actor || s.DecisionID != e.DecisionID || !s.Time.Equal(e.Time) {
			return bad("summary", "Time, type, actor or decision id is not the command's: the line was altered.")
		}
	}
	if d := w.compareKnown(); d != nil {
		return d
	}
	if w.first.IsZero() {
		w.first = e.Time
	}
	w.last = e.Time
	w.span.Add(leaf)
	return nil
}

// compareKnown holds the root so far against the known checkpoints of this size.
func (w *walker) compareKnown() *Defect {
	for _, root := range w.known[w.span.Size()] {
		if root != w.span.Root() {
			return &Defect{Seq: w.span.Size() - 1, Code: "fork", Detail: fmt.Sprintf(
				"The first %d entries are not those of a checkpoint known from before: the log was rewritten or forked.", w.span.Size())}
		}
		w.match++
		w.left--
	}
	delete(w.known, w.span.Size())
	return nil
}

// finish compares the root with the signed one, and fills the report.
func (w *walker) finish(signed Signed, r *Report) *Defect {
	if w.span.Root() != signed.Root {
		return &Defect{Seq: -1, Code: "root", Detail: "The entries agree with each other but not with the signed root: " +
			"at least one was altered together with its leaf hash, or the proof was."}
	}
	if d := w.compareKnown(); d != nil {
		return d
	}
	r.Checkpoint, r.SignedBy = signed.Checkpoint, signed.By
	r.ClusterID, r.Incarnation, _ = ParseOrigin(signed.Origin)
	r.First, r.Last = w.first, w.last
	r.SummariesChecked = w.opts.Describe != nil
	r.KnownMatched, r.KnownUnreached = w.match, w.left
	return nil
}

// A Part is what one call checks of a live log: a long one takes several.
type Part struct {
	// From is where it begins: 0, or the Next of the part before it.
	From int64
	// Enough, where set, is asked between entries whether the rest is to wait for
	// the next part.
	Enough func() bool
}

// VerifyLive checks a live log, or a part of it: every entry, the stored hashes, and
// with its end the signature on the newest checkpoint; entries after the checkpoint
// are held against the stored hashes. Each part begins with the stored hashes to
// which the one before it came by its own count, so that all parts together prove
// what one would. opts.Trusted must be given. Errors: as VerifyExport, and what src
// returned.
func VerifyLive(ctx context.Context, src Source, part Part, opts Options) (Report, error) {
	r := Report{Pinned: true, From: part.From}
	signed, _, err := openSource(ctx, src, opts.Trusted, opts.Quorum)
	if err != nil {
		return r, err
	}
	size, err := src.Size(ctx)
	if err != nil {
		return r, err
	}
	if _, _, ok := ParseOrigin(signed.Origin); !ok || size < signed.Size {
		return r, (&Defect{Seq: -1, Code: "checkpoint", Detail: fmt.Sprintf("The signed checkpoint covers %d entries of log %s; the ledger holds %d.",
			signed.Size, quote(signed.Origin), size)}).fault()
	}
	if part.From < 0 || part.From > signed.Size {
		return r, invalid("A part cannot begin at entry %d: the signed log has %d.", part.From, signed.Size)
	}
	w, err := walkFrom(ctx, src, part.From, opts, signed.Origin)
	if err != nil {
		return r, err
	}
	r.RootFrom = w.span.Root()
	if err := w.follow(ctx, src, signed.Size, part.Enough); err != nil {
		return r, err
	}
	r.To, r.RootTo = w.span.Size(), w.span.Root()
	if err := storedRoot(src, r.To, r.RootTo); err != nil {
		return r, err
	}
	if r.To < signed.Size {
		r.Checkpoint, r.Next = signed.Checkpoint, r.To
		return r, nil
	}
	if d := w.finish(signed, &r); d != nil {
		return r, d.fault()
	}
	if err := w.follow(ctx, src, size, nil); err != nil {
		return r, err
	}
	r.Unsigned = size - signed.Size
	return r, storedRoot(src, size, w.span.Root())
}

// walkFrom is a walker over a live log whose first entries were checked before.
func walkFrom(ctx context.Context, src Source, from int64, opts Options, origin string) (walker, error) {
	left, err := tree.Left(src, from)
	if err != nil {
		return walker{}, err
	}
	span, err := tree.NewSpan(from, left)
	if err != nil {
		return walker{}, err
	}
	w := newWalker(span, opts, origin)
	if from > 0 {
		before, err := src.Entry(ctx, from-1)
		if err != nil {
			return walker{}, err
		}
		w.last = before.Time
	}
	return w, nil
}

// storedRoot compares the root that the stored hashes make with the entries' own.
func storedRoot(hr tlog.HashReader, size int64, want tlog.Hash) error {
	stored, err := tree.Root(hr, size)
	if err != nil {
		return err
	}
	if stored != want {
		return (&Defect{Seq: -1, Code: "root", Detail: fmt.Sprintf("The stored tree hashes do not make the root of the entries at size %d.", size)}).fault()
	}
	return nil
}

// follow checks the entries of a live log up to a size, or until it is enough, but
// for one at least.
func (w *walker) follow(ctx context.Context, src Feed, to int64, enough func() bool) error {
	first := w.span.Size()
	for seq := first; seq < to; seq++ {
		if enough != nil && seq > first && enough() {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := src.Entry(ctx, seq)
		if err != nil {
			return err
		}
		if d := w.entry(seq, e, nil); d != nil {
			return d.fault()
		}
	}
	return nil
}
