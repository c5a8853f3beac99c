package host

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/time/rate"
)

// journal makes log lines of what a plugin writes: each bounded, free of control
// characters and of its targets' secrets, named after the plugin, and only so
// many. What is too fast waits in the plugin's own pipe.
type journal struct {
	log    *slog.Logger
	redact func(string) string
	ended  <-chan struct{} // with the plugin; then nothing waits
	bytes  *rate.Limiter

	mu      sync.Mutex
	lines   *rate.Limiter
	dropped int
}

func newJournal(ended <-chan struct{}, log *slog.Logger, redact func(string) string) *journal {
	return &journal{log: log, redact: redact, ended: ended, bytes: rate.NewLimiter(logBytesSec, logBytesOnce), lines: rate.NewLimiter(linesPerSec, linesAtOnce)}
}

// stream is one of the plugin's outputs.
type stream struct {
	j    *journal
	buf  []byte
	skip bool // the rest of a line that is too long
}

func (j *journal) stream() *stream { return &stream{j: j} }

// Write implements [io.Writer]; it never fails.
func (s *stream) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(len(rest), logBytesOnce)
		s.j.pace(n)
		s.take(rest[:n])
		rest = rest[n:]
	}
	return len(p), nil
}

// pace waits until n more bytes are due, or the plugin has ended.
func (j *journal) pace(n int) {
	wait := j.bytes.ReserveN(time.Now(), n).Delay()
	if wait == 0 {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-j.ended:
	}
}

func (s *stream) take(p []byte) {
	for _, c := range p {
		switch {
		case c == '\n':
			s.flush()
			s.skip = false
		case s.skip:
		case len(s.buf) == lineBuffer:
			s.flush()
			s.skip = true
		default:
			s.buf = append(s.buf, c)
		}
	}
}

func (s *stream) flush() {
	if len(s.buf) > 0 {
		s.j.line(string(s.buf))
	}
	s.buf = s.buf[:0]
}

// copy takes all that r has. It owns no more memory than its buffer.
func (s *stream) copy(r io.Reader) {
	_, _ = io.CopyBuffer(struct{ io.Writer }{s}, struct{ io.Reader }{r}, make([]byte, 4<<10))
	s.flush()
}

func (j *journal) line(text string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.lines.Allow() {
		j.dropped++
		return
	}
	if j.dropped > 0 {
		j.log.Warn("the plugin writes too much; lines were dropped", "lines", j.dropped)
		j.dropped = 0
	}
	level := slog.LevelInfo
	if word, rest, ok := strings.Cut(text, " "); ok && strings.HasPrefix(word, "level=") {
		var l slog.Level
		if l.UnmarshalText([]byte(word[len("level="):])) == nil {
			level, text = min(max(l, slog.LevelDebug), slog.LevelError), rest
		}
	}
	j.log.Log(context.Background(), level, "plugin says", "line", clean(j.redact(text), maxLine))
}

// clean makes one line of at most n bytes out of a stranger's text: control
// characters and those that turn the direction of text are written out.
func clean(text string, n int) string {
	var b strings.Builder
	for _, r := range text {
		if b.Len() >= n {
			return b.String() + "…"
		}
		switch {
		case r == utf8.RuneError, unicode.IsControl(r), unicode.Is(unicode.Cf, r), r == '\u2028', r == '\u2029':
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
