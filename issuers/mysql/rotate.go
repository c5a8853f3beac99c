package mysql

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// Bounds of a replacement.
const (
	maxSecret     = 256 // caching_sha2_password takes no more
	maxLongName   = 128 // characters that MariaDB keeps of a user name
	maxEntryCount = 64  // hosts of one account
)

// Admin implements [issuers.AdminHolder].
func (Kind) Admin(raw json.RawMessage) (username, secretName string, err error) {
	s, err := parseSpec(raw)
	return s.Admin.Username, SecretPassword, err
}

// Replace implements [issuers.Rotator], for every host that the account has an
// entry for. ALTER USER commits by itself, so no transaction takes it back: what
// keeps the deadline is a guard right before it in the same message, and limits on
// what it may wait for.
func (is *Issuer) Replace(ctx context.Context, r issuers.Replacement) error {
	if err := checkReplacement(&r); err != nil {
		return err
	}
	ctx, cancel := context.WithDeadline(ctx, r.Deadline.Add(answerGrace))
	defer cancel()
	if err := retry(ctx, func() error { return is.putSecret(ctx, r) }); err != nil {
		return sentError(fmt.Sprintf("replace the secret of %q", r.Username), err)
	}
	return nil
}

func checkReplacement(r *issuers.Replacement) error {
	plain := r.Next.Reveal()
	switch {
	case checkUser(r.Username) != nil:
		return refused("%v", checkUser(r.Username))
	case accountPattern.MatchString(r.Username), strings.HasPrefix(r.Username, scopePrefix):
		return foreign(r.Username)
	case plain == "" || len(plain) > maxSecret:
		return refused("a secret has 1 to %d characters; this one has %d", maxSecret, len(plain))
	case strings.ContainsFunc(plain, func(c rune) bool { return c < ' ' || c > '~' }):
		return refused("a secret is made of printable ASCII characters here; this one is not") // a password's bytes depend on the client's character set
	}
	if r.Deadline.IsZero() {
		r.Deadline = time.Now().Add(defaultDeadline)
	}
	if !time.Now().Before(r.Deadline) {
		return &issuers.Error{Kind: issuers.TooLate, Detail: "the deadline of the replacement has passed"}
	}
	return nil
}

func checkUser(name string) error {
	switch {
	case name == "" || utf8.RuneCountInString(name) > maxLongName:
		return fmt.Errorf("account: a name has 1 to %d characters", maxLongName)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, func(c rune) bool { return c == 0 || c > 0xffff }):
		return fmt.Errorf("account: %q cannot be a user name: it is UTF-8 of up to three bytes a character, without NUL", name)
	}
	return nil
}

func foreign(username string) *issuers.Error {
	return &issuers.Error{Kind: issuers.Foreign, Detail: fmt.Sprintf("%q is a lease's account or a role of the broker's own; its secret is not rotated", username)}
}

// inTime holds before an instant, by the target's clock.
func (d dialect) inTime(deadline time.Time) string {
	return fmt.Sprintf("%s < %d", nowSQL, deadline.Add(d.offset).UnixMicro())
}

// putSecret is one attempt.
func (is *Issuer) putSecret(ctx context.Context, r issuers.Replacement) error {
	c, err := is.server.acquire(ctx, is.server.mint)
	if err != nil {
		return err
	}
	defer c.release()
	left := time.Until(r.Deadline)
	err = c.run(ctx, c.limitSQL(left), guard("GET_LOCK("+quote(accountLock(r.Username))+", "+c.lockSeconds(left)+") = 1"), guard(c.inTime(r.Deadline)))
	if err != nil {
		return is.missingRight(c, r.Username, err)
	}
	entries, err := is.mayPut(ctx, c, r.Username)
	if err != nil {
		return is.missingRight(c, r.Username, err)
	}
	change, err := c.alterUser(r.Username, entries, r.Next)
	if err != nil {
		return err
	}
	limit := c.limitSQL(max(time.Until(r.Deadline), time.Millisecond))
	if !c.mysql {
		limit += fmt.Sprintf("; SET SESSION max_statement_time = GREATEST(0.001, (%d - CAST(%s AS SIGNED)) / 1000000)", r.Deadline.Add(c.offset).UnixMicro(), nowSQL)
	}
	err = c.run(ctx, append([]string{limit, guard(c.inTime(r.Deadline))}, change...)...)
	if err != nil && (len(entries) > 1 || len(change) > 1) {
		err = is.perhaps(r.Username, err)
	}
	return is.missingRight(c, r.Username, err)
}

// perhaps says that a failed change of several parts may have been made in part;
// what a server refuses before it begins is what it says.
func (is *Issuer) perhaps(username string, err error) error {
	switch codeOf(err) {
	case codeGuard, codeGlobalDenied, codeTableDenied, codeDatabaseDenied, codeLockWait, codeDeadlock:
		return err
	}
	return &issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("replace the secret of %q: some of its entries may have the new one", username), Err: err}
}

// accountLock is at most 64 characters long, whatever the name.
func accountLock(username string) string {
	sum := sha256.Sum256([]byte(username))
	return "mayfly.account." + hex.EncodeToString(sum[:16])
}

// entry is one host's row of an account.
type entry struct {
	host   string
	plugin string
	or     bool // several ways in (MariaDB: IDENTIFIED VIA … OR …)
}

// mayPut reads an account's entries. It is the rule of HAZARDS 9 and 16: never a
// lease's account, and never by a leader whom a newer one has followed.
func (is *Issuer) mayPut(ctx context.Context, c *conn, username string) ([]entry, error) {
	newer, err := c.list(ctx, "SELECT CAST(c.id AS CHAR) FROM "+schemaName+".connections c JOIN "+c.processlist()+
		" p ON p.id = c.id AND p.user = c.admin AND COALESCE(p.host, '') = c.address WHERE c.term > ? AND c.admin = ?", is.term, is.server.admin)
	if err != nil {
		return nil, err
	}
	if len(newer) > 0 {
		return nil, &issuers.Error{Kind: issuers.Superseded, Detail: "a newer leader is connected to the target"}
	}
	query := "SELECT User, Host, COALESCE(JSON_VALUE(Priv, '$.plugin'), ''), JSON_EXISTS(Priv, '$.auth_or'), COALESCE(JSON_VALUE(Priv, '$.is_role'), '') IN ('1', 'true'), FALSE FROM mysql.global_priv WHERE User = "
	if c.mysql {
		query = "SELECT User, Host, plugin, FALSE, FALSE, JSON_EXTRACT(User_attributes, '$.metadata.mayfly.lease') IS NOT NULL FROM mysql.user WHERE User = "
	}
	rows, err := c.QueryContext(ctx, query+quote(username)+fmt.Sprintf(" LIMIT %d", maxEntryCount+1))
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []entry
	for rows.Next() {
		var e entry
		var name string
		var role, leased bool
		if err := rows.Scan(&name, &e.host, &e.plugin, &e.or, &role, &leased); err != nil {
			return nil, err
		}
		if leased {
			return nil, foreign(username)
		}
		if name == username && !role { // the server compares without blanks at the end
			out = append(out, e)
		}
	}
	switch {
	case rows.Err() != nil:
		return nil, rows.Err()
	case len(out) == 0:
		return nil, &issuers.Error{Kind: issuers.Gone, Detail: fmt.Sprintf("there is no account %q", username)}
	case len(out) > maxEntryCount:
		return nil, refused("the account %q has entries for more than %d hosts", username, maxEntryCount)
	}
	return out, nil
}

// alterUser gives each entry a verifier for its own plugin; entries that know no
// password (a socket, PAM) are none of a secret's business.
func (d dialect) alterUser(username string, entries []entry, next secret.Text) ([]string, error) {
	var parts, hosts, others []string
	for _, e := range entries {
		v, err := d.verifierFor(e.plugin, next)
		if e.or {
			return nil, refused("%s can be entered in several ways (IDENTIFIED VIA … OR …); give it one, by a password, before it is rotated", at(username, []string{e.host}))
		}
		if err != nil {
			others = append(others, at(username, []string{e.host})+" ("+e.plugin+")")
			continue
		}
		hosts = append(hosts, e.host)
		word := " IDENTIFIED VIA " + v.plugin + " USING "
		if d.mysql {
			word = " IDENTIFIED WITH " + v.plugin + " AS "
		}
		parts = append(parts, at(username, []string{e.host})+word+quote(v.text))
	}
	if len(parts) == 0 {
		return nil, refused("no entry of the account logs in by a password that can be set here: %s", strings.Join(others, ", "))
	}
	out := []string{"ALTER USER " + strings.Join(parts, ", ")}
	if d.mysql { // a retained second password stays, unless it is discarded
		out = append(out, "ALTER USER "+atWith(username, hosts, " DISCARD OLD PASSWORD"))
	}
	return out, nil
}

// verifierFor hashes a secret of any length as a standing account's plugin does.
func (d dialect) verifierFor(plugin string, next secret.Text) (verifier, error) {
	known := []string{authNative, authEd25519, ""} // "" is the native one in rows of old servers
	if d.mysql {
		known = []string{authNative, authSHA2}
	}
	if !slices.Contains(known, plugin) {
		return verifier{}, fmt.Errorf("the plugin %q takes no password that can be set here", plugin)
	}
	switch plugin {
	case authEd25519:
		return verifier{plugin, ed25519Key(next)}, nil
	case authSHA2:
		return verifier{plugin, cachingSHA2(next, rand.Text()[:20])}, nil
	}
	return verifier{authNative, nativeHash(next)}, nil
}

// missingRight says what the admin account lacks.
func (is *Issuer) missingRight(c *conn, username string, err error) error {
	var fix string
	me := quote(is.spec.Admin.Username) + "@…"
	switch code := codeOf(err); {
	case isOurs(err):
		return err
	case code == codeGlobalDenied && c.mysql:
		fix = "it needs CREATE USER, and for an account with SYSTEM_USER that right too: GRANT CREATE USER ON *.* TO " + me
	case code == codeGlobalDenied:
		fix = "it needs CREATE USER: GRANT CREATE USER ON *.* TO " + me
	case code == codeTableDenied || code == codeDatabaseDenied || code == codeColumnDenied:
		fix = "it needs SELECT on the table of accounts: GRANT SELECT ON " + c.accounts() + " TO " + me
	default:
		return err
	}
	return &issuers.Error{Kind: issuers.Refused, Detail: fmt.Sprintf("the admin account may not change the password of %q: %s", username, fix), Err: err}
}
