package aws

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// arn is an Amazon Resource Name taken apart.
type arn struct {
	partition, service, region, account, resource string
}

var (
	partitionPattern = regexp.MustCompile(`^(aws|minio)(-[a-z]+)*$`) // aws-cn, aws-us-gov; MinIO's roles
	servicePattern   = regexp.MustCompile(`^[a-z0-9-]{1,63}$`)
	placePattern     = regexp.MustCompile(`^[a-z0-9-]{0,32}$`)
	accountPattern   = regexp.MustCompile(`^([0-9]{12}|aws)?$`)
)

const maxARN = 1024 // S3 keys are the longest part; scopes hold 256 bytes anyway

// parseARN reads arn:partition:service:region:account:resource. A * may end the
// resource and stand nowhere else: then IAM's pattern means what scope.Covers
// compares, a prefix. IAM's other pattern characters, and its variables, are
// refused, since the algebra would take them for themselves.
func parseARN(text string) (arn, error) {
	part := strings.SplitN(text, ":", 6)
	if len(text) > maxARN || len(part) != 6 || part[0] != "arn" {
		return arn{}, fmt.Errorf("%q must be an ARN, as in arn:aws:s3:::bucket/prefix/*", clip(text))
	}
	a := arn{part[1], part[2], part[3], part[4], part[5]}
	switch {
	case !partitionPattern.MatchString(a.partition), !servicePattern.MatchString(a.service), !placePattern.MatchString(a.region), !accountPattern.MatchString(a.account):
		return a, fmt.Errorf("%q: partition, service, region and account of an ARN are named exactly; a * may only end the last part", clip(text))
	case a.resource == "", strings.HasPrefix(a.resource, "/"):
		return a, fmt.Errorf("%q: the last part of the ARN names no resource", clip(text))
	case strings.Contains(strings.TrimSuffix(a.resource, "*"), "*"), strings.Contains(a.resource, "?"):
		return a, fmt.Errorf("%q: a * may only stand at the end, and a ? nowhere: IAM takes both for patterns", clip(text))
	case strings.Contains(a.resource, "${"):
		return a, fmt.Errorf("%q: ${ begins a policy variable, which would widen the scope at the moment of use", clip(text))
	}
	return a, checkPlain(text)
}

// checkPlain refuses what reads differently to a person and to IAM.
func checkPlain(text string) error {
	if !utf8.ValidString(text) {
		return fmt.Errorf("%q is not UTF-8", clip(text))
	}
	for _, r := range text {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == utf8.RuneError {
			return fmt.Errorf("%q holds a control or formatting character", clip(text))
		}
	}
	return nil
}

// bucketOf returns an S3 resource's bucket, and its object part where it has one:
// "b" → "b", "", false; "b/x*" → "b", "x*", true.
func (a arn) bucketOf() (bucket, object string, hasObject bool) { return strings.Cut(a.resource, "/") }

// open says whether the resource is a prefix of others.
func (a arn) open() bool { return strings.HasSuffix(a.resource, "*") }

// clip keeps error messages short.
func clip(s string) string {
	if len(s) > 120 {
		return strings.ToValidUTF8(s[:120], "") + "…"
	}
	return s
}
