package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// Line is one line of a difference: added, removed or the same.
type Line struct {
	Mark string // "+", "-" or " "
	Text string
}

// maxDiff is how many lines of each side are compared; the table of the
// comparison has that many squared places.
const maxDiff = 1200

// diffLines compares two texts by their longest common run of lines.
func diffLines(before, after string) []Line {
	a, b := splitLines(before), splitLines(after)
	if len(a) > maxDiff || len(b) > maxDiff {
		return append(marked("-", a), marked("+", b)...)
	}
	// common[i][j] is how many lines a[i:] and b[j:] share in order.
	common := make([][]int16, len(a)+1)
	for i := range common {
		common[i] = make([]int16, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var out []Line
	i, j := 0, 0
	for i < len(a) && j < len(b) {
		switch {
		case a[i] == b[j]:
			out = append(out, Line{" ", a[i]})
			i, j = i+1, j+1
		case common[i+1][j] >= common[i][j+1]:
			out = append(out, Line{"-", a[i]})
			i++
		default:
			out = append(out, Line{"+", b[j]})
			j++
		}
	}
	return append(append(out, marked("-", a[i:])...), marked("+", b[j:])...)
}

func splitLines(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(s, "\n"), "\n")
}

func marked(mark string, lines []string) (out []Line) {
	for _, l := range lines {
		out = append(out, Line{mark, l})
	}
	return out
}

// readable is a spec as people compare it: a policy is its text, everything else
// indented JSON.
func readable(kind string, spec json.RawMessage) string {
	if len(spec) == 0 {
		return ""
	}
	if kind == "Policy" {
		var p struct {
			Text string `json:"text"`
		}
		if json.Unmarshal(spec, &p) == nil && p.Text != "" {
			return p.Text
		}
	}
	return indent(spec)
}

// indent lays JSON out; what is no JSON stays as it is.
func indent(raw json.RawMessage) string {
	var v any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if dec.Decode(&v) != nil {
		return string(raw)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if enc.Encode(v) != nil {
		return fmt.Sprint(string(raw))
	}
	return strings.TrimSuffix(out.String(), "\n")
}
