package aws

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/mayfly-broker/mayfly/scope"
)

// scopeType is the `type` of the details that this kind compiles.
const scopeType = "aws"

// maxPolicy is how long an inline session policy may be, in characters
// (AssumeRole, Policy), and all inline policies of a user (IAM quotas). AWS packs
// the former besides, to a size that it alone computes.
const maxPolicy = 2048

// statement is one statement that allows. There is no NotAction and no
// NotResource: what is not allowed is not given.
type statement struct {
	Effect    string
	Action    oneOrMore
	Resource  oneOrMore
	Condition condition
}

// condition holds IAM's condition operators. A lease's end stands in every
// statement, so that a statement that is read without it gives nothing.
type condition struct {
	DateLessThan map[string]string
	StringLike   map[string]oneOrMore `json:",omitempty"`
}

// oneOrMore is written without brackets where there is one: characters count.
type oneOrMore []string

// MarshalJSON implements [json.Marshaler].
func (o oneOrMore) MarshalJSON() ([]byte, error) {
	if len(o) == 1 {
		return marshal(o[0])
	}
	return marshal([]string(o))
}

// compile turns a scope into the session policy of a session that may do nothing
// from end on, by AWS's clock.
func (sp *spec) compile(in scope.Scope, end time.Time) (string, error) {
	s, err := in.Normalise()
	if err != nil {
		return "", err
	}
	p := &policy{end: instant(end)}
	for _, d := range s {
		if err := sp.compileDetail(p, d); err != nil {
			return "", err
		}
	}
	all := make([]any, 0, len(p.statements)+3)
	for _, s := range p.statements {
		all = append(all, s)
	}
	if sp.IAMUser != nil {
		all = append(all, userDenials(p.end)...)
	}
	text, err := document(all...)
	if err != nil {
		return "", fmt.Errorf("encode the policy: %w", err)
	}
	if len(text) > maxPolicy {
		return "", fmt.Errorf("scope: its policy has %d characters; AWS takes at most %d; name fewer actions and resources, or ask for two credentials", len(text), maxPolicy)
	}
	return text, nil
}

// document writes a policy of these statements.
func document(statements ...any) (string, error) {
	raw, err := marshal(struct {
		Version   string
		Statement []any
	}{"2012-10-17", statements})
	return escapeASCII(raw), err
}

func (sp *spec) compileDetail(p *policy, d scope.Detail) error {
	switch {
	case d.Type != sp.scopeType():
		return fmt.Errorf("type: %q; allowed is %s%s", d.Type, sp.scopeType(), sp.otherType(d.Type))
	case d.Identifier != "" || len(d.Datatypes) > 0 || len(d.Tables) > 0 || len(d.Privileges) > 0:
		return errors.New("identifier, datatypes, tables and privileges mean nothing here; allowed are actions, such as s3:getobject, and locations, such as arn:aws:s3:::bucket/prefix/*")
	case len(d.Locations) == 0:
		return errors.New("locations: the ARNs that the actions may act on are needed, as in arn:aws:s3:::bucket/prefix/*; nothing is meant by leaving them out")
	}
	for _, l := range d.Locations {
		if err := sp.checkLocation(l); err != nil {
			return fmt.Errorf("locations: %w", err)
		}
	}
	for _, a := range d.Actions {
		name, err := sp.checkAction(a)
		if err != nil {
			return err
		}
		if known, ok := s3Actions[a]; ok {
			err = p.allowS3(known, d.Locations)
		} else {
			p.allow(name, d.Locations, nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (sp *spec) checkLocation(l string) error {
	if l == "*" {
		if !sp.AnyResource {
			return errors.New(`"*" is every resource of the account; the target allows that with any_resource: true, for actions that know no resources`)
		}
		return nil
	}
	if _, err := parseARN(l); err != nil {
		return err
	}
	if !sp.within(l) {
		return fmt.Errorf("%q is not within the target's resources (%s)", clip(l), clip(strings.Join(sp.Resources, ", ")))
	}
	return nil
}

// policy collects statements; those with the same resources and condition become one.
type policy struct {
	end        string
	statements []*statement
}

func (p *policy) allow(action string, resources, prefixes []string) {
	resources, prefixes = sorted(resources), sorted(prefixes)
	for _, s := range p.statements {
		if slices.Equal(s.Resource, resources) && slices.Equal(s.Condition.StringLike["s3:prefix"], prefixes) {
			if !slices.Contains(s.Action, action) {
				s.Action = append(s.Action, action)
			}
			return
		}
	}
	s := &statement{Effect: "Allow", Action: oneOrMore{action}, Resource: resources}
	s.Condition.DateLessThan = map[string]string{"aws:CurrentTime": p.end}
	if len(prefixes) > 0 {
		s.Condition.StringLike = map[string]oneOrMore{"s3:prefix": prefixes}
	}
	p.statements = append(p.statements, s)
}

// allowS3 gives an action those of the locations that it can act on. Listing is
// S3's exception: it acts on the bucket, and the prefix is a condition.
func (p *policy) allowS3(a s3Action, locations []string) error {
	var plain, buckets []string
	prefixes := map[string][]string{} // by the bucket's ARN
	for _, l := range locations {
		at, err := parseARN(l)
		if err != nil || at.service != "s3" || at.region != "" || at.account != "" { // "*", or an access point
			if l == "*" || at.service == "s3" {
				plain = append(plain, l)
			}
			continue
		}
		_, object, has := at.bucketOf()
		switch a.level {
		case onObject:
			if has && object != "" || !has && at.open() {
				plain = append(plain, l)
			}
		case onBucket:
			if !has {
				plain = append(plain, l)
			}
		case onListing:
			switch {
			case !has:
				plain = append(plain, l)
			case object == "*":
				plain = append(plain, strings.TrimSuffix(l, "/*"))
			case at.open():
				bucket := strings.TrimSuffix(l, "/"+object)
				if prefixes[bucket] == nil {
					buckets = append(buckets, bucket)
				}
				prefixes[bucket] = append(prefixes[bucket], object)
			}
		case onService:
			if at.resource == "*" {
				plain = append(plain, l)
			}
		}
	}
	if len(plain)+len(buckets) == 0 {
		return fmt.Errorf("locations: %s %s", strings.ToLower(a.name), needs[a.level])
	}
	if len(plain) > 0 {
		p.allow(a.name, plain, nil)
	}
	for _, b := range buckets {
		p.allow(a.name, []string{b}, prefixes[b])
	}
	return nil
}

// needs says what a level's actions want of locations.
var needs = map[level]string{
	onObject:  "acts on objects: name some, as in arn:aws:s3:::bucket/prefix/*",
	onBucket:  "acts on a bucket as a whole: name it, as in arn:aws:s3:::bucket",
	onListing: "lists a bucket, arn:aws:s3:::bucket, or what begins with a prefix, arn:aws:s3:::bucket/prefix/*; one object cannot be listed",
	onService: "acts on no bucket: its location is arn:aws:s3:::*",
}

func sorted(in []string) []string {
	out := slices.Clone(in)
	slices.Sort(out)
	return slices.Compact(out)
}

// marshal is json.Marshal without escapes for HTML, which would only cost length.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// escapeASCII writes what is not ASCII as JSON escapes: STS refuses characters
// beyond U+00FF in a policy, and signatures of others are a matter of taste.
func escapeASCII(raw []byte) string {
	var b strings.Builder
	for _, r := range string(raw) {
		switch {
		case r < 0x7f:
			b.WriteRune(r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
