package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// row is one line of the table.
type row struct {
	what   string
	got    string // the figure, with its unit
	detail string // p50 and p99, or how it was had
	raw    string // the machine's own limit in the same run; "" where there is none
	ratio  string // got against raw
	budget string // DESIGN, section 6; "" where it sets none
	met    string // yes, no, or "" without a budget
}

func (b *bench) add(r row) {
	b.rows = append(b.rows, r)
	b.progress("   %-52s %14s  %s", r.what, r.got, r.met)
}

// note marks a budget as met or missed.
func met(ok bool) string {
	if ok {
		return "yes"
	}
	return "NO"
}

var header = row{"what", "measured", "", "raw limit", "ratio", "budget", "met"}

func (r row) cells() []string {
	return []string{r.what, r.got, r.detail, r.raw, r.ratio, r.budget, r.met}
}

// print writes the table.
func (b *bench) print(w io.Writer, caption string) {
	fmt.Fprintln(w, caption)
	fmt.Fprintln(w)
	all := [][]string{header.cells()}
	for _, r := range b.rows {
		all = append(all, r.cells())
	}
	widths := make([]int, len(header.cells()))
	for _, cells := range all {
		for i, c := range cells {
			widths[i] = max(widths[i], len([]rune(c)))
		}
	}
	for n, cells := range all {
		fmt.Fprintln(w, b.line(cells, widths))
		if n == 0 {
			fmt.Fprintln(w, b.rule(widths))
		}
	}
}

func (b *bench) line(cells []string, widths []int) string {
	var out []string
	for i, c := range cells {
		out = append(out, c+strings.Repeat(" ", widths[i]-len([]rune(c))))
	}
	if b.markdown {
		return "| " + strings.Join(out, " | ") + " |"
	}
	return strings.TrimRight(strings.Join(out, "  "), " ")
}

func (b *bench) rule(widths []int) string {
	var out []string
	for _, n := range widths {
		out = append(out, strings.Repeat("-", n))
	}
	if b.markdown {
		return "| " + strings.Join(out, " | ") + " |"
	}
	return strings.Join(out, "  ")
}

// perSecond prints a rate.
func perSecond(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f /s", v)
	}
	return fmt.Sprintf("%.1f /s", v)
}

func short(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%.0f µs", float64(d)/1e3)
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/1e6)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", float64(d)/1e6)
	default:
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
}

func times(a, b float64) string {
	if b == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f ×", a/b)
}

func mib(bytes int64) string { return fmt.Sprintf("%d MiB", bytes>>20) }
