package ledger

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/mayfly-broker/mayfly/broker/audit/tree"
)

// Entry is one recorded command: a leaf of the Merkle tree.
type Entry struct {
	Seq    uint64
	TimeMS int64  // ledger time
	Result string // result code
	Public []byte // exact bytes the leaf covers
}

// Type returns the command's type without decoding the rest, for those who look
// for few among many; "" where the entry is not as [Encode] writes it.
func (e Entry) Type() string {
	rest, ok := bytes.CutPrefix(e.Public, []byte(`{"v":1,"type":"`))
	name, _, whole := bytes.Cut(rest, []byte{'"'})
	if !ok || !whole {
		return ""
	}
	return string(name)
}

// Decision returns what was decided before the command, as it was recorded, and
// its id, without decoding the body; ok is false where nothing was decided.
func (e Entry) Decision() (id string, decision []byte, ok bool) {
	first, rest, _ := bytes.Cut(e.Public, []byte{'\n'})
	_, decision, ok = bytes.Cut(rest, []byte{'\n'})
	var h struct {
		DecisionID string `json:"decision_id"`
	}
	if !ok || json.Unmarshal(first, &h) != nil {
		return "", nil, false
	}
	return h.DecisionID, decision, true
}

// Outcome is the result as the leaf covers it: the code and the ledger time,
// which is no part of the command, so that both can be proven later.
func (e Entry) Outcome() string { return outcome(e.Result, e.TimeMS) }

func outcome(code string, ms int64) string { return code + "@" + strconv.FormatInt(ms, 10) }

// SplitOutcome takes an Outcome apart.
func SplitOutcome(s string) (code string, ms int64, err error) {
	code, digits, ok := strings.Cut(s, "@")
	ms, err = strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || outcome(code, ms) != s {
		return "", 0, fmt.Errorf("ledger: %q is not an outcome code@milliseconds", s)
	}
	return code, ms, nil
}

// record appends the command to the ledger and its leaf to the tree.
func (s *state) record(c *context, res Result, public []byte) {
	code := res.Code
	b := beUint(uint64(c.now))
	b = binary.AppendUvarint(b, uint64(len(code)))
	b = append(append(b, code...), public...)
	s.put(bucketEntry, beUint(c.seq), b)
	hashes, err := tree.Append(treeReader{&s.view}, int64(c.seq), tree.LeafData(outcome(code, c.now), public))
	if err != nil {
		if s.err == nil {
			s.err = fmt.Errorf("ledger: tree at %d: %w", c.seq, err)
		}
		return
	}
	at := tlog.StoredHashIndex(0, int64(c.seq))
	for i, h := range hashes {
		s.put(bucketTree, beUint(uint64(at)+uint64(i)), h[:])
	}
	s.put(bucketMeta, metaSize, beUint(c.seq+1))
}

func decodeEntry(seq uint64, b []byte) (Entry, error) {
	if len(b) < 9 {
		return Entry{}, fmt.Errorf("ledger: entry %d is cut short", seq)
	}
	n, used := binary.Uvarint(b[8:])
	if used <= 0 || n > uint64(len(b)-8-used) {
		return Entry{}, fmt.Errorf("ledger: entry %d is cut short", seq)
	}
	at := 8 + used
	return Entry{
		Seq:    seq,
		TimeMS: int64(toUint(b[:8])),
		Result: string(b[at : at+int(n)]),
		Public: append([]byte(nil), b[at+int(n):]...),
	}, nil
}

// treeReader reads stored hashes out of the state.
type treeReader struct{ v *view }

// ReadHashes implements [tlog.HashReader].
func (t treeReader) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, ix := range indexes {
		b := t.v.Get(bucketTree, beUint(uint64(ix)))
		if len(b) != tlog.HashSize {
			return nil, fmt.Errorf("ledger: tree hash %d is missing", ix)
		}
		copy(out[i][:], b)
	}
	return out, nil
}
