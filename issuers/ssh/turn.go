package ssh

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// turnHeader is the PEM header of a key that a rotation has put beside the one
// that signs. Keys without it that do not sign were put there by hand.
const turnHeader = "Mayfly-Turn"

// Its values.
const (
	turnNext = "next" // published, and does not sign yet
	turnOld  = "old"  // signs no more
)

// KeyTimes implements [issuers.KeyTurner]: the spec's key_publish, and max_ttl with
// what clocks may differ.
func (Kind) KeyTimes(raw json.RawMessage) (publish, honour time.Duration) {
	sp, err := parseSpec(raw)
	if err != nil {
		return defaultPublish, longestHost + keepRevoked
	}
	return sp.publish, sp.maxTTL + keepRevoked
}

// TurnKeys implements [issuers.KeyTurner].
func (Kind) TurnKeys(_ context.Context, raw json.RawMessage, secrets map[string]secret.Text, turn issuers.KeyTurn) (map[string]secret.Text, error) {
	sp, err := parseSpec(raw)
	if err != nil {
		return nil, fmt.Errorf("ssh: %w", err)
	}
	blocks, err := keyBlocks(secrets[SecretKey])
	if err != nil {
		return nil, fmt.Errorf("ssh: %w", err)
	}
	phase := phaseOf(blocks)
	last := len(blocks) - 1
	switch {
	case turn == issuers.KeyPublish && last == 0:
		made, err := Kind{}.MakeSecrets(raw)
		if err != nil {
			return nil, fmt.Errorf("ssh: %w", err)
		}
		next, _ := pem.Decode([]byte(made[SecretKey].Reveal()))
		next.Headers = map[string]string{turnHeader: turnNext}
		blocks = append(blocks, next)
	case turn == issuers.KeyUse && phase == turnNext:
		next := blocks[last]
		next.Headers = nil
		for _, old := range blocks[:last] {
			old.Headers = map[string]string{turnHeader: turnOld}
		}
		blocks = append([]*pem.Block{next}, blocks[:last]...)
	case turn == issuers.KeyRetire && phase != turnNext && last > 0:
		blocks = blocks[:1] // keys that were put there by hand do not sign either, unless they are first
	default:
		return nil, errors.New("ssh: the step does not fit the target's keys: a new key is published, then used, then the old one retired")
	}
	var text []byte
	for _, b := range blocks {
		text = append(text, pem.EncodeToMemory(b)...)
	}
	out := secret.New(string(text))
	if _, err := readCA(out, sp.CAAlgorithm); err != nil {
		return nil, fmt.Errorf("ssh: %w", err)
	}
	return map[string]secret.Text{SecretKey: out}, nil
}

// phaseOf reads which step was the last; "" where none was, or the last has ended.
func phaseOf(blocks []*pem.Block) string {
	for _, b := range blocks[1:] {
		if turn := b.Headers[turnHeader]; turn != "" {
			return turn
		}
	}
	return ""
}
