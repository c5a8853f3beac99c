package redis

import (
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// Compile gives the selectors of a scope.
func Compile(raw []byte, s scope.Scope) ([]string, error) {
	sp, err := parseSpec(raw)
	if err != nil {
		return nil, err
	}
	c, err := compile(sp, s)
	return c.selectors, err
}

// WriteMark and ReadMark are the marker's.
func WriteMark(key, name string, generation, term uint64) string {
	return marker{secret.New(key)}.write(name, mark{generation, term})
}

// ReadMark returns the generation and the term of the mark among hashes.
func ReadMark(key, name string, hashes ...string) (generation, term uint64, ok bool) {
	m, ok := marker{secret.New(key)}.read(name, hashes)
	return m.generation, m.term, ok
}

// ParseClusterNodes returns how many nodes CLUSTER NODES names.
func ParseClusterNodes(text string) (int, error) {
	n, err := parseClusterNodes(text, "127.0.0.1")
	for _, x := range n {
		if x.slot >= 0 && int(crc16(slotTag(x.slot)))%clusterSlots != x.slot {
			panic("a gate would stand in another slot")
		}
	}
	return len(n), err
}
