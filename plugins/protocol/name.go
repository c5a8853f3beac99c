package protocol

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Placeholders in a [NameForm].
const (
	placeLease      = "{lease}"
	placeGeneration = "{generation}"
)

// maxNameForm bounds a form in bytes. The shortest limit of the systems that we
// know is 63, and a lease id takes 26 of it.
const maxNameForm = 96

// NameForm is how a kind names its credentials: "mf-{lease}",
// "{lease}.{generation}@mayfly".
type NameForm string

// Check refuses forms by which two leases could meet in one name, and characters
// that some system would read as more than a name.
func (f NameForm) Check() error {
	s := string(f)
	switch {
	case len(s) > maxNameForm:
		return fmt.Errorf("it has %d bytes; at most %d are allowed", len(s), maxNameForm)
	case strings.Count(s, placeLease) != 1:
		return errors.New("it must hold the whole id of the lease, once")
	case strings.Count(s, placeGeneration) > 1:
		return errors.New("it holds the generation more than once")
	}
	rest := strings.NewReplacer(placeLease, "", placeGeneration, "").Replace(s)
	for _, c := range rest {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_.:@+", c)) {
			return fmt.Errorf("%q may not stand in it: letters, digits and - _ . : @ + may", c)
		}
	}
	// Without something between them, lease "…1" generation 2 could be "…" generation 12.
	if i := strings.Index(s, placeGeneration); i >= 0 && (strings.HasSuffix(s[:i], placeLease) || strings.HasPrefix(s[i+len(placeGeneration):], placeLease)) {
		return errors.New("something must stand between lease and generation")
	}
	return nil
}

// Name makes the name of a lease's credential.
func (f NameForm) Name(lease string, generation uint64) string {
	s := strings.Replace(string(f), placeGeneration, strconv.FormatUint(generation, 10), 1)
	return strings.Replace(s, placeLease, lease, 1)
}

// FindForm finds the form of a naming function: it names samples and looks where
// lease and generation stand in the result. A function with another rule, such as
// a hash, has no form.
func FindForm(name func(lease string, generation uint64) string) (NameForm, error) {
	type sample struct {
		lease      string
		generation uint64
	}
	first := sample{"6k1s0v4wqzhj2m8x7ctb9frnge", 7305118264}
	others := []sample{{"zr5t8bq2c0w9nd6g1j4fxhk7vm", 1}, {"00000000000000000000000000", 2}, {"zzzzzzzzzzzzzzzzzzzzzzzzzz", 11}, {first.lease, 1 << 40}}
	text := name(first.lease, first.generation)
	text = strings.Replace(text, first.lease, placeLease, 1)
	f := NameForm(strings.Replace(text, strconv.FormatUint(first.generation, 10), placeGeneration, 1))
	if err := f.Check(); err != nil {
		return "", fmt.Errorf("CredentialName gives %.120q, which is no form of names: %w", f, err)
	}
	for _, s := range append(others, first) {
		if got, want := name(s.lease, s.generation), f.Name(s.lease, s.generation); got != want {
			return "", fmt.Errorf("CredentialName(%q, %d) gives %.120q where the form %s gives %q: a plugin's names are one text with lease and generation in it", s.lease, s.generation, got, f, want)
		}
	}
	return f, nil
}
