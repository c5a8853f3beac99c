package rabbitmq

import (
	"time"

	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// Granted is what a scope gives in one virtual host.
type Granted struct {
	VHost, Configure, Write, Read string
	Topics                        [][2]string // exchange, keys to read
}

// Compile gives a scope's permissions and limits.
func Compile(s scope.Scope) ([]Granted, map[string]int, error) {
	c, err := compile(s)
	var out []Granted
	for _, v := range c.vhosts {
		g := Granted{VHost: v.name, Configure: v.rights[configure], Write: v.rights[write], Read: v.rights[read]}
		for _, t := range v.topics {
			g.Topics = append(g.Topics, [2]string{t.exchange, t.read})
		}
		out = append(out, g)
	}
	return out, c.limits, err
}

// Tags are those of a user.
func Tags(key string, generation, term uint64) []string {
	return mark{generation, term}.tags(targetTag(secret.New(key)))
}

// ReadTags finds the mark among tags.
func ReadTags(key string, tags ...string) (generation, term uint64, ours bool) {
	m, ours := readMark(targetTag(secret.New(key)), tags)
	return m.generation, m.term, ours
}

// NewPassword makes a password and its hash.
func NewPassword() (password, hash string) {
	p, h, err := newPassword()
	if err != nil {
		panic(err)
	}
	return p.Reveal(), h
}

// NewEnough reads a version.
var NewEnough = newEnough

// SetPatience changes how long a user may stand without a permission.
func SetPatience(is *Issuer, d time.Duration) { is.patience = d }

// OwnTags are those of an issuer's users.
func OwnTags(is *Issuer, generation, term uint64) []string {
	return mark{generation, term}.tags(is.own)
}
