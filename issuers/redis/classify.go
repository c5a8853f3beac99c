package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mayfly-broker/mayfly/issuers"
)

// answered reports whether the server itself said no, and what its first word was.
func answered(err error) (word string, ok bool) {
	var e goredis.Error
	if !errors.As(err, &e) || errors.Is(err, goredis.Nil) || errors.Is(err, goredis.TxFailedErr) {
		return "", false
	}
	word, _, _ = strings.Cut(e.Error(), " ")
	return word, true
}

// notNow are the answers of a server that cannot serve at the moment, wherever
// it stands; anything else that it refuses, it refuses for good.
var notNow = map[string]bool{
	"LOADING": true, "BUSY": true, "CLUSTERDOWN": true, "MASTERDOWN": true, "READONLY": true, "MOVED": true, "ASK": true, "TRYAGAIN": true,
	"NOREPLICAS": true, "MISCONF": true, "OOM": true,
}

// beforeError classifies a failure before anything of the credential was sent:
// nothing was done.
func beforeError(what string, err error) *issuers.Error {
	var mine *issuers.Error
	if errors.As(err, &mine) {
		return mine
	}
	e := &issuers.Error{Kind: issuers.Unreachable, Detail: what, Err: err}
	word, said := answered(err)
	switch {
	case !said || notNow[word]:
	case word == "WRONGPASS" || word == "NOAUTH":
		e.Kind, e.Detail = issuers.Refused, "the server refuses the admin user's login"
	case word == "NOPERM":
		e.Kind, e.Detail = issuers.Refused, what+": the admin user lacks a right; see the target's check"
	default:
		e.Kind = issuers.Refused
	}
	if said && word == "BUSY" {
		e.Detail = what + ": the server runs a script that does not end; SCRIPT KILL ends it"
	}
	return e
}

// sentError classifies a failure after a change was sent.
func sentError(what string, err error) *issuers.Error {
	var mine *issuers.Error
	if errors.As(err, &mine) {
		return mine
	}
	if _, said := answered(err); said {
		return beforeError(what, err)
	}
	return &issuers.Error{Kind: issuers.Unknown, Detail: what, Err: err}
}

func refused(format string, args ...any) *issuers.Error {
	return &issuers.Error{Kind: issuers.Refused, Detail: fmt.Sprintf(format, args...)}
}

func unreachable(format string, args ...any) *issuers.Error {
	return &issuers.Error{Kind: issuers.Unreachable, Detail: fmt.Sprintf(format, args...)}
}

// pause waits before the n-th retry, from 0: 2 ms, doubled up to 64 ms.
func pause(ctx context.Context, n int) error {
	t := time.NewTimer(2 * time.Millisecond << min(n, 5))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
