package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// show prints a result in the format that was asked for; human prints it as a
// table or card.
func (s *shell) show(v any, human func(*page)) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.showRaw(raw, human)
}

// showRaw is show for a document that is JSON already.
func (s *shell) showRaw(raw []byte, human func(*page)) error {
	if s.field != "" {
		return s.showField(raw)
	}
	switch s.output {
	case asJSON:
		var b bytes.Buffer
		if err := json.Indent(&b, raw, "", "  "); err != nil {
			return err
		}
		_, err := fmt.Fprintf(s.out, "%s\n", escapeJSON(b.Bytes()))
		return err
	case asYAML:
		return writeYAML(s.out, raw)
	default:
		p := &page{w: s.out, now: time.Now(), paint: s.painter(s.out)}
		human(p)
		return p.err
	}
}

func (s *shell) showField(raw []byte) error {
	doc, err := decodeAny(raw)
	if err != nil {
		return err
	}
	found, err := pick(doc, s.field)
	if err != nil {
		return err
	}
	for _, v := range found {
		var line string
		switch v := v.(type) {
		case string:
			line = v // as it is: a program reads it, and it may be a secret of any shape
			if terminal(s.out) {
				line = cleanLines(v)
			}
		case nil:
			line = ""
		default:
			b, err := json.Marshal(v)
			if err != nil {
				return err
			}
			line = string(escapeJSON(b))
		}
		if _, err := fmt.Fprintln(s.out, strings.TrimSuffix(line, "\n")); err != nil {
			return err
		}
	}
	return nil
}

func decodeAny(raw []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber() // sequence numbers outgrow a float
	var doc any
	err := dec.Decode(&doc)
	return doc, err
}

// page prints for people. The first write error is kept.
type page struct {
	w     io.Writer
	now   time.Time
	paint func(colour, string) string
	err   error
}

func (p *page) printf(format string, args ...any) {
	if _, err := fmt.Fprintf(p.w, format, args...); err != nil && p.err == nil {
		p.err = err
	}
}

// line prints one line of text that may come from anywhere.
func (p *page) line(text string) { p.printf("%s\n", cleanLines(text)) }

// cell is one cell of a table.
type cell struct {
	text string
	ink  colour
}

func plain(text string) cell { return cell{text: text} }

// table prints aligned columns. Without rows it says so.
func (p *page) table(none string, head []string, rows [][]cell) {
	if len(rows) == 0 {
		p.printf("%s\n", none)
		return
	}
	top := make([]cell, len(head))
	for i, h := range head {
		top[i] = cell{h, dim}
	}
	all := append([][]cell{top}, rows...)
	width := make([]int, len(head))
	for _, row := range all {
		for i := range row {
			row[i].text = clean(row[i].text)
			if row[i].text == "" {
				row[i].text = "-"
			}
			width[i] = max(width[i], utf8.RuneCountInString(row[i].text))
		}
	}
	for _, row := range all {
		var b strings.Builder
		for i, c := range row {
			b.WriteString(p.paint(c.ink, c.text))
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(c.text)+2))
			}
		}
		p.printf("%s\n", b.String())
	}
}

// card prints named values below each other; empty ones are left out.
func (p *page) card(pairs ...string) {
	wide := 0
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			wide = max(wide, len(pairs[i]))
		}
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		if v := pairs[i+1]; v != "" {
			p.printf("%s%s  %s\n", p.paint(dim, pairs[i]), strings.Repeat(" ", wide-len(pairs[i])), clean(v))
		}
	}
}

// when is an instant as people count: "in 12m", "3h ago".
func (p *page) when(t time.Time) string {
	if t.IsZero() || t.Unix() <= 0 {
		return ""
	}
	if d := t.Sub(p.now); d >= 0 {
		return "in " + span(d)
	}
	return span(p.now.Sub(t)) + " ago"
}

// both is an instant in both ways, for cards.
func (p *page) both(t time.Time) string {
	if t.IsZero() || t.Unix() <= 0 {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05 MST") + " (" + p.when(t) + ")"
}

func (p *page) bothPtr(t *time.Time) string {
	if t == nil {
		return ""
	}
	return p.both(*t)
}

// span is a length of time in one or two units.
func span(d time.Duration) string {
	d = d.Round(time.Second)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return strings.TrimSuffix(fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60), "00s")
	case d < 48*time.Hour:
		return strings.TrimSuffix(fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60), "00m")
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}
