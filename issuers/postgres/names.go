package postgres

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Names on the target. PostgreSQL keeps 63 bytes; ours have 33 and 45 at
// most, so that none is ever cut off (HAZARDS 16).
const (
	accountPrefix = "mayfly_"
	scopePrefix   = "mayfly_scope_"
	// rowsPrefix begins the owner of a pooled role's views of rows, and the schema
	// that they are in.
	rowsPrefix = "mayfly_rows_"
)

var (
	accountPattern = regexp.MustCompile(`^mayfly_[0-9a-z]{26}$`)
	markPattern    = regexp.MustCompile(`^mayfly lease=([0-9a-z]{26}) gen=([0-9]{1,20}) term=([0-9]{1,20})$`)
	appPattern     = regexp.MustCompile(`^mayfly/([0-9]{1,20})$`)
)

// accountMark starts the comment of every account of ours, readable or not.
const accountMark = "mayfly lease="

// Comments of a pooled role. Ready is written when every grant stands. Both name
// the target's main database, where the locks are taken: a target keeps house
// among its own pooled roles alone, not among those of another on the same server.
func scopeMaking(mainDatabase string) string { return scopeMark + "being made for " + mainDatabase }
func scopeReady(mainDatabase string) string  { return scopeMark + "ready for " + mainDatabase }

const scopeMark = "mayfly scope: "

// rowsName names the owner of a pooled role's views, and their schema.
func rowsName(scopeRole string) string {
	return rowsPrefix + strings.TrimPrefix(scopeRole, scopePrefix)
}

// rowsMark is the comment of such an owner.
func rowsMark(mainDatabase string) string { return viewsMark + "owner of views for " + mainDatabase }

const viewsMark = "mayfly rows: "

// mark is what the comment on an account says. Comments on roles can be written
// by accounts with CREATEROLE alone, so an account cannot forge its own.
type mark struct {
	leaseID    string
	generation uint64
	term       uint64
}

func (m mark) String() string {
	return fmt.Sprintf("%s%s gen=%d term=%d", accountMark, m.leaseID, m.generation, m.term)
}

func parseMark(comment string) (mark, bool) {
	f := markPattern.FindStringSubmatch(comment)
	if f == nil {
		return mark{}, false
	}
	generation, err1 := strconv.ParseUint(f[2], 10, 64)
	term, err2 := strconv.ParseUint(f[3], 10, 64)
	return mark{f[1], generation, term}, err1 == nil && err2 == nil
}

func appName(term uint64) string { return "mayfly/" + strconv.FormatUint(term, 10) }

func parseAppName(name string) (term uint64, ok bool) {
	f := appPattern.FindStringSubmatch(name)
	if f == nil {
		return 0, false
	}
	term, err := strconv.ParseUint(f[1], 10, 64)
	return term, err == nil
}

// checkLease refuses a lease whose name is not the one that this package
// derives: everything after this check may put the name into SQL.
func checkLease(l issuers.Lease) error {
	if !accountPattern.MatchString(l.Name) || l.Name != (Kind{}).CredentialName(l.ID, l.Generation) {
		return &issuers.Error{Kind: issuers.Refused, Detail: fmt.Sprintf("lease %q: the name %q is not mayfly_ and 26 characters of 0-9, a-z", l.ID, l.Name)}
	}
	return nil
}

// Keys of advisory locks, all taken in the target's main database (advisory
// locks belong to a database). A collision would cost waiting, nothing else.
func leaseKey(leaseID string) int64   { return lockKey("lease", leaseID) }
func scopeKey(scopeRole string) int64 { return lockKey("scope", scopeRole) }
func poolKey() int64                  { return lockKey("pool", "") }

func lockKey(kind, name string) int64 {
	sum := sha256.Sum256([]byte("mayfly lock\x00" + kind + "\x00" + name))
	return int64(binary.BigEndian.Uint64(sum[:8]))
}

// ident quotes an identifier; parts are joined with dots.
func ident(parts ...string) string { return pgx.Identifier(parts).Sanitize() }
