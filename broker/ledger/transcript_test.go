package ledger_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/ledger/ledgertest"
)

// A transcript is a text that people read: lines that begin with ">" are
// commands, the indented lines below each are what the ledger answered and what
// has changed in the state. Everything but the ">" lines and comments is
// rewritten by -rewrite.
//
//	> at 5s                      the clock, in milliseconds or with a unit
//	> as workload:app            who acts from now on
//	> open a db/rw instance=i1   lease "a"; ids are written short
//
// What a command takes stands in [book.line].

// TestTranscripts plays every transcript and compares.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "transcripts", "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts (%v)", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, want)
			if *rewrite {
				if err := os.WriteFile(f, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s is no longer what happens (see with -rewrite and git diff); it gives\n%s", f, got)
			}
		})
	}
}

// play runs the commands of a transcript and writes it anew.
func play(t *testing.T, text []byte) []byte {
	var out bytes.Buffer
	p := &player{book: newBook(t), actor: app}
	p.base = p.now
	in := bufio.NewScanner(bytes.NewReader(text))
	for in.Scan() {
		line := in.Text()
		switch {
		case strings.HasPrefix(line, ">"):
			out.WriteString(line + "\n")
			before := p.mem.Clone()
			if res, acted := p.line(strings.Fields(line[1:])); acted {
				out.WriteString("  " + shorten(verdict(res)) + "\n")
				out.WriteString(shorten(difference(before, p.mem, p.base)))
			}
		case strings.HasPrefix(line, "  "): // an old answer
		default:
			out.WriteString(line + "\n")
		}
	}
	return out.Bytes()
}

func verdict(r ledger.Result) string {
	s := r.Code
	if r.Replayed {
		s += " (replayed)"
	}
	if r.ID != "" {
		s += " " + r.ID
	}
	if len(r.Also) > 0 {
		s += " also " + strings.Join(r.Also, " ")
	}
	if len(r.Value) > 0 {
		s += " value " + string(r.Value)
	}
	if r.Detail != "" {
		s += ": " + r.Detail
	}
	return s
}

var padding = regexp.MustCompile(`(lse|grt|tsk|dec|ses)_0+`)

// shorten writes ids as people read them.
func shorten(s string) string { return padding.ReplaceAllString(s, "${1}_") }

// quiet holds what every command changes: the record itself.
var quiet = []string{"entry", "tree"}

// difference lists what a command changed beside the record of itself. Instants
// are written as what they are after the beginning.
func difference(before, after *ledgertest.Mem, base int64) string {
	var lines []string
	after.Each(func(bucket, key string, value []byte) {
		old := before.Get(bucket, []byte(key))
		if slices.Contains(quiet, bucket) || bucket == "meta" && key == "size" || bytes.Equal(old, value) {
			return
		}
		sign := "+"
		if old != nil {
			sign = "~"
		}
		lines = append(lines, fmt.Sprintf("    %s %s/%s = %s\n", sign, bucket, printable(key, base), printable(string(value), base)))
	})
	before.Each(func(bucket, key string, _ []byte) {
		if !slices.Contains(quiet, bucket) && after.Get(bucket, []byte(key)) == nil {
			lines = append(lines, fmt.Sprintf("    - %s/%s\n", bucket, printable(key, base)))
		}
	})
	return strings.Join(lines, "")
}

var instants = regexp.MustCompile(`("[a-z_]*_ms":)(1[0-9]{6})\b`)

// printable writes keys and values of all shapes for people.
func printable(s string, base int64) string {
	if json.Valid([]byte(s)) {
		return instants.ReplaceAllStringFunc(s, func(m string) string {
			name, digits, _ := strings.Cut(m, ":")
			ms, _ := strconv.ParseInt(digits, 10, 64)
			return name + ":" + after(ms, base)
		})
	}
	if len(s) >= 8 && s[0] == 0 {
		n := int64(binary.BigEndian.Uint64([]byte(s[:8])))
		word := strconv.FormatInt(n, 10)
		if n >= base {
			word = after(n, base)
		}
		if len(s) == 16 && s[8] == 0 { // a count within a minute
			return fmt.Sprintf("minute %d: %d", n, binary.BigEndian.Uint64([]byte(s[8:])))
		}
		if rest := s[8:]; rest != "" {
			word += " " + printable(rest, base)
		}
		return word
	}
	if s == "\x01" {
		return "yes"
	}
	return strings.ReplaceAll(s, "\x00", "|")
}

func after(ms, base int64) string { return fmt.Sprintf("T+%d", ms-base) }

// player is a book that is driven by lines of text.
type player struct {
	*book
	actor string
	base  int64
}

// args are a line's words: those without "=" in order, the others by name.
type args struct {
	plain []string
	named map[string]string
}

func (a args) at(i int) string {
	if i < len(a.plain) {
		return a.plain[i]
	}
	return ""
}

func (a args) ms(name string, fallback int64) int64 {
	if s, ok := a.named[name]; ok {
		return millis(s)
	}
	return fallback
}

func millis(s string) int64 {
	if n, ok := strings.CutSuffix(s, "s"); ok {
		v, _ := strconv.ParseInt(n, 10, 64)
		return v * 1000
	}
	v, _ := strconv.ParseInt(s, 10, 64)
	return v
}

// line does what one line says; acted is false where it commits nothing.
func (p *player) line(words []string) (res ledger.Result, acted bool) {
	p.t.Helper()
	a := args{named: map[string]string{}}
	for _, w := range words[1:] {
		if k, v, ok := strings.Cut(w, "="); ok {
			a.named[k] = v
		} else {
			a.plain = append(a.plain, w)
		}
	}
	switch words[0] {
	case "at":
		p.now = p.base + millis(a.at(0))
		return res, false
	case "as":
		p.actor = a.at(0)
		return res, false
	}
	body := p.command(words[0], a)
	if body == nil {
		p.t.Fatalf("a transcript cannot say %q", strings.Join(words, " "))
	}
	h := p.header(p.actor)
	if k, ok := a.named["key"]; ok {
		h.Idem = &ledger.Idem{Key: k, Hash: a.named["hash"]}
	}
	if _, ok := body.(*ledger.RecordDecision); ok {
		h.DecisionID = id(ledger.PrefixDecision, a.at(0))
	}
	if _, ok := body.(*ledger.OpenLease); ok {
		h.DecisionID = id(ledger.PrefixDecision, a.at(0))
	}
	return p.apply(h, body), true
}

func leaseIDs(names []string) []string {
	var out []string
	for _, n := range names {
		out = append(out, id(ledger.PrefixLease, n))
	}
	return out
}

// command reads the commands that begin, renew and end leases and tasks.
func (p *player) command(verb string, a args) ledger.Body {
	name := a.at(0)
	switch verb {
	case "open": // open NAME ROLE [task=] [instance=] [ttl=] [max=] [stale=yes]
		return p.openLine(name, a)
	case "remint": // remint NAME GENERATION
		n, _ := strconv.ParseUint(a.at(1), 10, 64)
		return &ledger.RemintLease{ID: id(ledger.PrefixLease, name), Generation: n, Name: "acc-" + name, MintDeadlineMS: p.now + 15_000}
	case "extend": // extend NAME until=
		return &ledger.ExtendLease{ID: id(ledger.PrefixLease, name), ExpiresMS: p.base + a.ms("until", 0), Read: ledger.Read{PolicyEpoch: p.q().PolicyEpoch()}}
	case "end": // end REASON NAME…
		return &ledger.EndLeases{Reason: name, IDs: leaseIDs(a.plain[1:])}
	case "withdrawn": // withdrawn NAME [looked=] [problem=]
		w := ledger.Withdrawal{LeaseID: id(ledger.PrefixLease, name), LookedMS: p.base + a.ms("looked", p.now-p.base), Problem: a.named["problem"]}
		if w.Problem == "" {
			w.Receipt = rawJSON(`{"proof":"absent"}`)
		}
		return &ledger.RecordWithdrawals{Items: []ledger.Withdrawal{w}}
	case "force": // force NAME…
		return &ledger.ForceEnd{IDs: leaseIDs(a.plain), Reason: "the target is gone"}
	case "task": // task NAME [id=] [parent=] [for=] [deadline=] [lapse=]
		t := ledger.Task{ID: id(ledger.PrefixTask, name), Name: name, Purpose: "work", Principal: p.actor, DeadlineMS: p.base + a.ms("deadline", 600_000), LapseMS: a.ms("lapse", 0)}
		if f := a.named["id"]; f != "" {
			t.ID = id(ledger.PrefixTask, f)
		}
		if f := a.named["for"]; f != "" {
			t.Principal = f
		}
		if f := a.named["parent"]; f != "" {
			t.Parent = id(ledger.PrefixTask, f)
		}
		switch a.named["scope"] {
		case "read":
			t.Scope = scopeRead
		case "both":
			t.Scope = scopeBoth
		}
		return &ledger.StartTask{Task: t}
	case "beat":
		return &ledger.HeartbeatTask{ID: id(ledger.PrefixTask, name)}
	case "end-task": // end-task NAME REASON
		return &ledger.EndTask{ID: id(ledger.PrefixTask, name), Reason: a.at(1)}
	case "denied":
		return &ledger.RecordDecision{Action: "request", Resource: "Role/db/rw", Code: "denied"}
	case "sweep":
		return &ledger.Sweep{Max: 100}
	}
	return p.more(verb, a)
}

// more reads the other commands.
func (p *player) more(verb string, a args) ledger.Body {
	name := a.at(0)
	hash := func(s string) string { return strings.Repeat("0", 64-len(s)) + s }
	switch verb {
	case "freeze": // freeze KIND NAME
		return &ledger.Freeze{Kind: name, Name: a.at(1), Reason: "odd"}
	case "release":
		return &ledger.Release{Kind: name, Name: a.at(1), Reason: "fine"}
	case "role": // role NAME caps={…}
		return &ledger.ChangeObjects{Changes: []ledger.ObjectChange{{Kind: "Role", Name: name, AnyVersion: true,
			Spec: rawJSON(`{"scope":[{"type":"memory","actions":["read"]}],"ttl":{"default":"1m","max":"10m"}}`)}}}
	case "enrol": // enrol PRINCIPAL TOKEN until=
		return &ledger.IssueEnrolment{Principal: name, TokenHash: hash(a.at(1)), ExpiresMS: p.base + a.ms("until", 600_000)}
	case "login": // login NAME [enrol=TOKEN] [key=] [once=] [thumb=]
		cmd := &ledger.OpenSession{Session: ledger.Session{ID: id(ledger.PrefixSession, name), TokenHash: hash(name), Principal: p.actor, Binding: "dpop",
			Thumbprint: a.named["thumb"], Method: "key", ExpiresMS: p.base + a.ms("until", 900_000)}}
		if tok := a.named["enrol"]; tok != "" {
			cmd.EnrolmentHash = hash(tok)
			cmd.NewKey = &ledger.Key{Thumbprint: a.named["thumb"], Principal: p.actor, Use: ledger.UseSession, JWK: rawJSON(`{"kty":"EC"}`)}
			cmd.Session.KeyThumbprint = a.named["thumb"]
		}
		if once := a.named["once"]; once != "" {
			cmd.OneShot, cmd.OneShotUntilMS = once, p.base+300_000
		}
		return cmd
	case "logout":
		return &ledger.EndSession{ID: id(ledger.PrefixSession, name)}
	case "add-key":
		return &ledger.AddKey{Key: ledger.Key{Thumbprint: name, Principal: p.actor, Use: ledger.UseSession, JWK: rawJSON(`{"kty":"EC"}`)}}
	case "remove-key":
		return &ledger.RemoveKey{Principal: p.actor, Thumbprint: name}
	case "join-token":
		return &ledger.IssueJoinToken{TokenHash: hash(name), ExpiresMS: p.base + a.ms("until", 600_000)}
	case "admit":
		return &ledger.AdmitNode{TokenHash: hash(name), NodeID: a.at(1), Addr: "10.0.0.2:8701"}
	}
	return nil
}

func (p *player) openLine(name string, a args) ledger.Body {
	task := ""
	if t := a.named["task"]; t != "" {
		task = id(ledger.PrefixTask, t)
	}
	return p.open(p.actor, a.at(1), name, task, func(c *ledger.OpenLease) {
		c.Lease.Grant.DecisionID = id(ledger.PrefixDecision, name)
		c.Lease.ExpiresMS = p.now + a.ms("ttl", 60_000)
		c.Lease.NotAfterMS = p.now + a.ms("max", max(60_000, a.ms("ttl", 0)))
		if c.ImplicitTask != nil {
			c.ImplicitTask.DeadlineMS = c.Lease.NotAfterMS
		}
		if i := a.named["instance"]; i != "" {
			instance(i)(c)
		}
		if a.named["stale"] != "" {
			c.Read.PolicyEpoch += 7
		}
		if a.named["scope"] == "both" {
			c.Lease.Grant.Scope = scopeBoth
		}
	})
}
