package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"time"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/mayfly-broker/mayfly/broker/audit/tree"
	"github.com/mayfly-broker/mayfly/broker/fault"
)

// Format names the export's format, in its header line.
const Format = "mayfly-audit-export/1"

// headerLine is an export's first line.
type headerLine struct {
	Format      string   `json:"format"`
	Cluster     string   `json:"cluster"`
	Incarnation uint64   `json:"incarnation"`
	Keys        []string `json:"keys"`
	// The entries are [From, To).
	From int64 `json:"from"`
	To   int64 `json:"to"`
	// Left is what [tree.NewSpan] needs, for an export that does not begin at 0.
	Left []tlog.Hash `json:"left,omitempty"`
}

// entryLine is one entry. Command is the raw bytes as a string, so that they can
// be had back exactly; bytes that are no UTF-8, or that would outgrow the line
// when escaped, are in CommandBase64 instead.
type entryLine struct {
	Seq           int64     `json:"seq"`
	Time          string    `json:"time"`
	Type          string    `json:"type"`
	Result        string    `json:"result"`
	Actor         string    `json:"actor,omitempty"`
	DecisionID    string    `json:"decision_id,omitempty"`
	Command       string    `json:"command,omitempty"`
	CommandBase64 []byte    `json:"command_base64,omitempty"`
	Leaf          tlog.Hash `json:"leaf"`
}

// closingLine is an export's last line.
type closingLine struct {
	Checkpoint string `json:"checkpoint"`
	// Right is what [tree.Span.Close] needs, for an export that ends before the
	// checkpoint does.
	Right []tlog.Hash `json:"right,omitempty"`
}

var closingPrefix = []byte(`{"checkpoint":`)

// newEntryLine makes the line's content and returns the leaf's hash with it.
func newEntryLine(e Entry) entryLine {
	return entryLine{
		Seq: e.Seq, Time: formatTime(e.Time), Type: e.Type, Result: e.Result,
		Actor: e.Actor, DecisionID: e.DecisionID, Command: string(e.Command),
		Leaf: tree.LeafHash(tree.LeafData(e.Result, e.Command)),
	}
}

func formatTime(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// encodeEntry encodes the line that wrap makes of e, choosing the spelling of the
// command. Errors: a [fault.Invalid] when it does not fit a line or a text field
// is no UTF-8.
func encodeEntry(e Entry, wrap func(entryLine) any) ([]byte, error) {
	for _, s := range []string{e.Type, e.Result, e.Actor, e.DecisionID} {
		if !utf8.ValidString(s) {
			return nil, invalid("Entry %d has a field that is no UTF-8 text.", e.Seq)
		}
	}
	l := newEntryLine(e)
	if utf8.Valid(e.Command) {
		if line, err := encodeLine(wrap(l)); err != nil || len(line) <= MaxLine {
			return line, err
		}
	}
	l.Command, l.CommandBase64 = "", e.Command
	line, err := encodeLine(wrap(l))
	if err == nil && len(line) > MaxLine {
		return nil, invalid("Entry %d takes %d bytes; a line has at most %d.", e.Seq, len(line), MaxLine)
	}
	return line, err
}

// entry is the line's content; the leaf hash is not checked here.
func (l entryLine) entry() (Entry, error) {
	at, err := time.Parse(time.RFC3339Nano, l.Time)
	if err != nil || formatTime(at) != l.Time {
		return Entry{}, errNotCanonical
	}
	command := []byte(l.Command)
	if l.Command == "" {
		command = l.CommandBase64
	} else if len(l.CommandBase64) > 0 {
		return Entry{}, errNotCanonical
	}
	return Entry{
		Seq:     l.Seq,
		Summary: Summary{Time: at.UTC(), Type: l.Type, Actor: l.Actor, DecisionID: l.DecisionID},
		Result:  l.Result, Command: command,
	}, nil
}

// encodeLine returns v as one line of JSON with its newline.
func encodeLine(v any) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "A line could not be encoded.")
	}
	return out.Bytes(), nil
}

// Why a line was not taken. Never shown: they become Defects.
var (
	errNotCanonical = errors.New("not in the form it was written in")
	errLineTooLong  = errors.New("line too long")
	errNoNewline    = errors.New("last line has no newline")
)

// decodeLine reads a line (with its newline) into v, which is zero. It takes only
// what encodeLine writes, to the byte: a field added, doubled or spelt otherwise
// would let two readers see two things in one line.
func decodeLine[T any](line []byte, v *T) error {
	if err := json.Unmarshal(line, v); err != nil {
		return err
	}
	again, err := encodeLine(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, line) {
		return errNotCanonical
	}
	return nil
}

// lineReader reads lines of at most MaxLine bytes.
type lineReader struct {
	r   *bufio.Reader
	buf []byte
	n   int64 // lines read so far
}

func newLineReader(r io.Reader) *lineReader {
	return &lineReader{r: bufio.NewReaderSize(r, 64<<10)}
}

// next returns the next line with its newline, valid until the next call. Errors:
// io.EOF at the end, errNoNewline, errLineTooLong, what the reader returned.
func (l *lineReader) next() ([]byte, error) {
	l.buf = l.buf[:0]
	for {
		part, err := l.r.ReadSlice('\n')
		if len(l.buf)+len(part) > MaxLine {
			l.n++
			return nil, errLineTooLong
		}
		l.buf = append(l.buf, part...)
		switch {
		case err == nil:
			l.n++
			return l.buf, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(l.buf) > 0:
			l.n++
			return nil, errNoNewline
		default:
			return nil, err
		}
	}
}
