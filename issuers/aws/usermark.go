package aws

import (
	"regexp"
	"strconv"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"

	"github.com/mayfly-broker/mayfly/issuers"
)

// userPrefix begins every user's name.
const userPrefix = "mf-"

// The tags that make a user ours.
const (
	tagLease  = "mayfly:lease"
	tagTarget = "mayfly:target"
	tagBroker = "mayfly:broker" // the broker's own URL; told to people, not compared
	tagEnd    = "mayfly:end"
	// tagGeneration ends in a number. It stands in the key, because IAM knows no
	// comparing write: what comes late then adds a lower number, and takes no higher
	// one away (HAZARDS 9).
	tagGeneration = "mayfly:generation:"
)

var leaseIDPattern = regexp.MustCompile(`^[0-9a-z]{26}$`)

// userName is the user of a lease, of whatever generation.
func userName(leaseID string) string { return userPrefix + leaseID }

// mark is what a user's name, path and tags say.
type mark struct {
	leaseID     string
	generation  uint64
	generations []uint64 // all that stand there
}

// readMark reads the mark of a user of this target's. ok is false for whatever is
// not ours (HAZARDS 16).
func (u *users) readMark(user *types.User) (m mark, ok bool) {
	if user == nil || sdk.ToString(user.Path) != u.path {
		return m, false
	}
	var target string
	for _, t := range user.Tags {
		key, value := sdk.ToString(t.Key), sdk.ToString(t.Value)
		switch key {
		case tagLease:
			m.leaseID = value
		case tagTarget:
			target = value
		}
		number, found := strings.CutPrefix(key, tagGeneration)
		if !found {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 64)
		if err != nil || strconv.FormatUint(n, 10) != number {
			return m, false
		}
		m.generations = append(m.generations, n)
		m.generation = max(m.generation, n)
	}
	return m, m.generation > 0 && target == u.target && leaseIDPattern.MatchString(m.leaseID) && sdk.ToString(user.UserName) == userName(m.leaseID)
}

// generationTag is the part of the mark that a re-mint adds.
func (u *users) generationTag(l issuers.Lease) types.Tag {
	return types.Tag{Key: sdk.String(tagGeneration + strconv.FormatUint(l.Generation, 10)), Value: sdk.String(strconv.FormatUint(u.term, 10))}
}

func endTag(end time.Time) types.Tag {
	return types.Tag{Key: sdk.String(tagEnd), Value: sdk.String(instant(end))}
}

// newTags are a new user's.
func (u *users) newTags(l issuers.Lease, end time.Time) ([]types.Tag, error) {
	more, err := u.tags(l)
	if err != nil {
		return nil, err
	}
	out := []types.Tag{
		{Key: sdk.String(tagLease), Value: &l.ID}, {Key: sdk.String(tagTarget), Value: &u.target}, endTag(end), u.generationTag(l),
	}
	if tagPattern.MatchString(u.broker) {
		out = append(out, types.Tag{Key: sdk.String(tagBroker), Value: &u.broker})
	}
	for _, t := range more {
		if t.key != tagLease {
			out = append(out, types.Tag{Key: sdk.String(t.key), Value: sdk.String(t.value)})
		}
	}
	return out, nil
}
