package awstest

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// The few parts of IAM's policy language that the stand-in reads. What it does not
// read is malformed to it: nothing is passed over.
type policyDocument struct {
	Version   string
	Statement []struct {
		Effect           string
		Action, Resource words
		Condition        map[string]map[string]words
	}
}

// words is one string or a list.
type words []string

// UnmarshalJSON implements [json.Unmarshaler].
func (w *words) UnmarshalJSON(raw []byte) error {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		*w = words{one}
		return nil
	}
	var list []string
	if err := json.Unmarshal(raw, &list); err != nil || len(list) == 0 {
		return errors.New("neither a string nor a list of strings")
	}
	*w = list
	return nil
}

var actionForm = regexp.MustCompile(`^(\*|[a-z0-9-]+:[A-Za-z0-9*]+)$`)

func readPolicy(text string) (p policyDocument, err error) {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return p, err
	}
	if p.Version != "2012-10-17" || len(p.Statement) == 0 {
		return p, errors.New("no version, or no statement")
	}
	for _, s := range p.Statement {
		if s.Effect != "Allow" && s.Effect != "Deny" || len(s.Action) == 0 || len(s.Resource) == 0 {
			return p, errors.New("a statement is not whole")
		}
		for _, a := range s.Action {
			if !actionForm.MatchString(a) {
				return p, fmt.Errorf("%q is no action", a)
			}
		}
		for op, keys := range s.Condition {
			for key, values := range keys {
				if _, err := holds(op, key, values, facts{}); err != nil {
					return p, err
				}
			}
		}
	}
	return p, nil
}

// facts are a request's context keys; what is not there is unknown.
type facts map[string]string

// like matches IAM's patterns: * and ?.
func like(pattern, text string) bool {
	var b strings.Builder
	for _, r := range pattern {
		switch r {
		case '*':
			b.WriteString("(?s:.*)")
		case '?':
			b.WriteString("(?s:.)")
		default:
			b.WriteString(regexp.QuoteMeta(string(r)))
		}
	}
	return regexp.MustCompile("^" + b.String() + "$").MatchString(text)
}

func holds(op, key string, values []string, f facts) (bool, error) {
	have, known := f[key]
	for _, v := range values {
		ok := false
		switch op {
		case "DateLessThan", "DateGreaterThanEquals", "DateGreaterThan":
			limit, err := time.Parse(time.RFC3339, v)
			if err != nil {
				return false, err
			}
			at, err := time.Parse(time.RFC3339Nano, have)
			ok = err == nil && (op == "DateLessThan" && at.Before(limit) || op == "DateGreaterThan" && at.After(limit) || op == "DateGreaterThanEquals" && !at.Before(limit))
		case "StringEquals":
			ok = have == v
		case "StringLike":
			ok = like(v, have)
		case "Bool":
			ok = have == v
		case "Null":
			if v != "true" && v != "false" {
				return false, errors.New("Null is true or false")
			}
			if known == (v == "false") {
				return true, nil
			}
			continue
		default:
			return false, fmt.Errorf("the operator %q is not known here", op)
		}
		if known && ok {
			return true, nil
		}
	}
	return false, nil
}

// judge says what one set of policies says of a request: an explicit denial wins,
// and what nothing allows is denied.
func judge(documents []string, action, resource string, f facts) (allowed, denied bool) {
	for _, text := range documents {
		p, err := readPolicy(text)
		if err != nil {
			return false, true
		}
		for _, s := range p.Statement {
			hit := false
			for _, a := range s.Action {
				hit = hit || like(strings.ToLower(a), strings.ToLower(action))
			}
			named := false
			for _, r := range s.Resource {
				named = named || like(r, resource)
			}
			for op, keys := range s.Condition {
				for key, values := range keys {
					ok, err := holds(op, key, values, f)
					hit = hit && ok && err == nil
				}
			}
			switch {
			case !hit || !named:
			case s.Effect == "Deny":
				return false, true
			default:
				allowed = true
			}
		}
	}
	return allowed, false
}
