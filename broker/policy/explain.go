package policy

import (
	"fmt"
	"strconv"
	"strings"
)

// Explain says in plain text what was decided and which policy asked for what.
// r is the request that d answers. Names and texts in it that could hide or
// rearrange what is read are quoted and escaped.
func Explain(d Decision, r Request) string { return ExplainWaived(d, r, "") }

// ExplainWaived is Explain for what was done though nothing of what its permit asks
// to wait for was given: waived says why. Empty: nothing was waived.
func ExplainWaived(d Decision, r Request, waived string) string {
	var b strings.Builder
	verdict := "DENY"
	if d.Permit {
		verdict = "PERMIT"
	}
	fmt.Fprintf(&b, "%s (%s): %s %s %s %s\n", verdict, visible(d.Code),
		visible(r.Principal.Kind+":"+r.Principal.Name), visible(r.Action), visible(r.Resource.Kind), visible(r.Resource.Name))
	for _, p := range d.Policies {
		explainReason(&b, p)
	}
	if len(d.Policies) == 0 && d.Code == CodeNoPermit {
		b.WriteString("  no policy permits it\n")
	}
	for _, e := range d.Errors {
		fmt.Fprintf(&b, "  error: %s\n", visible(e))
	}
	for _, n := range d.Nearly {
		fmt.Fprintf(&b, "  nearly: %s (%s:%d) permits it, but this does not hold: %s\n", visible(n.ID), visible(n.Source), n.Line, oneLine(n.Missing))
	}
	explainObligations(&b, d.Obligations, r, oneLine(waived))
	fmt.Fprintf(&b, "  policies: sha256:%s\n", visible(d.PolicyHash))
	return b.String()
}

func explainReason(b *strings.Builder, p Reason) {
	fmt.Fprintf(b, "  %s by %s (%s:%d)", visible(p.Effect), visible(p.ID), visible(p.Source), p.Line)
	asks := ""
	for _, name := range allAnnotations {
		if value, ok := p.Annotations[name]; ok && name != annDescription {
			asks += fmt.Sprintf(" @%s(%s)", name, strconv.Quote(value))
		}
	}
	if asks != "" {
		b.WriteString(", which asks for" + asks)
	}
	if text := p.Annotations[annDescription]; text != "" {
		b.WriteString(": " + oneLine(text))
	}
	b.WriteByte('\n')
}

func explainObligations(b *strings.Builder, o Obligations, r Request, waived string) {
	owed := func(what string) {
		if waived == "" {
			fmt.Fprintf(b, "  so: needs %s\n", what)
		} else {
			fmt.Fprintf(b, "  waived: %s, because %s\n", what, waived)
		}
	}
	if o.MaxTTL > 0 && (waived == "" || r.Action == ActionRequest || r.Action == ActionRenew) {
		fmt.Fprintf(b, "  so: lives at most %s\n", o.MaxTTL)
	}
	for _, q := range o.Approvals {
		owed(fmt.Sprintf("%d approval(s) from group %s (%s)", q.Count, visible(q.Group), visible(q.Policy)))
	}
	if o.ApprovalTTL > 0 && waived == "" {
		fmt.Fprintf(b, "  so: waits for approvals at most %s\n", o.ApprovalTTL)
	}
	if o.StepUp != "" {
		owed("a fresh " + visible(o.StepUp))
	}
}

// visible returns s as it is when it is one plain word, else quoted.
func visible(s string) string {
	if s == "" || strings.ContainsAny(s, " \"\\`") || oneLine(s) != s {
		return strconv.Quote(s)
	}
	return s
}

// oneLine escapes what cannot be seen or would end the line, and nothing else.
func oneLine(s string) string {
	var b strings.Builder
	for _, r := range s {
		if strconv.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
	}
	return b.String()
}
