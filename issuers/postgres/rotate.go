package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
)

// maxSecret bounds a secret that is to be set; servers and drivers take more, but
// poolers and old clients have buffers of their own.
const maxSecret = 256

// Admin implements [issuers.AdminHolder]. A spec does not say whether the admin
// account shows a certificate: a target without the secret that is named here is
// entered by one.
func (Kind) Admin(raw json.RawMessage) (username, secretName string, err error) {
	s, err := parseSpec(raw)
	return s.Admin.Username, SecretPassword, err
}

// replacement is a Replacement that was looked at.
type replacement struct {
	username string
	verifier string
	deadline time.Time // by our clock
}

// Replace implements [issuers.Rotator]. Like a re-mint it looks first, and then
// sends the change, its last guard and COMMIT as one message, so that a broker that
// stops between two messages can commit nothing late.
func (is *Issuer) Replace(ctx context.Context, r issuers.Replacement) error {
	next, err := is.prepareReplacement(r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithDeadline(ctx, next.deadline.Add(answerGrace))
	defer cancel()
	if err := retry(ctx, func() error { return is.putSecret(ctx, next) }); err != nil {
		return sentError(fmt.Sprintf("replace the secret of %q", r.Username), err)
	}
	return nil
}

func (is *Issuer) prepareReplacement(r issuers.Replacement) (*replacement, error) {
	if err := checkIdentifier("account", r.Username); err != nil {
		return nil, refused("%v", err)
	}
	if accountPattern.MatchString(r.Username) {
		return nil, foreign(r.Username)
	}
	if err := checkSecret(r.Next.Reveal()); err != nil {
		return nil, err
	}
	out := &replacement{username: r.Username, deadline: r.Deadline}
	if out.deadline.IsZero() {
		out.deadline = time.Now().Add(defaultDeadline)
	}
	if !time.Now().Before(out.deadline) {
		return nil, &issuers.Error{Kind: issuers.TooLate, Detail: "the deadline of the replacement has passed"}
	}
	var err error
	if out.verifier, err = newVerifier(r.Next, is.spec.ScramIterations); err != nil {
		return nil, refused("make a SCRAM verifier: %v", err)
	}
	return out, nil
}

// checkSecret accepts what SASLprep (RFC 4013) leaves as it is, so that the
// verifier that is made here is the one that every client proves.
func checkSecret(plain string) error {
	if plain == "" || len(plain) > maxSecret {
		return refused("a secret has 1 to %d characters; this one has %d", maxSecret, len(plain))
	}
	for _, c := range []byte(plain) {
		if c < ' ' || c > '~' {
			return refused("a secret is made of printable ASCII characters here; this one is not")
		}
	}
	return nil
}

func foreign(username string) *issuers.Error {
	return &issuers.Error{Kind: issuers.Foreign, Detail: fmt.Sprintf("%q is a lease's account or a role of the broker's own; its secret is not rotated", username)}
}

// putSecret is one attempt.
func (is *Issuer) putSecret(ctx context.Context, r *replacement) error {
	conn, f, err := acquire(ctx, is.server.mint)
	if err != nil {
		return err
	}
	defer conn.Release()
	c := conn.Conn()
	inTime, err := inTimeSQL(c, r.deadline.Add(f.offset))
	if err != nil {
		return err
	}
	verifier, err := literal(c, r.verifier)
	if err != nil {
		return err
	}
	if _, err := run(ctx, c, fmt.Sprintf("BEGIN; SELECT %s, pg_advisory_xact_lock(%d), %s", limitSQL(r.deadline), lockKey("account", r.username), inTime)); err != nil {
		return rollback(ctx, c, err)
	}
	a, err := is.mayPut(ctx, c, r)
	if err != nil {
		return rollback(ctx, c, err)
	}
	_, err = run(ctx, c, "ALTER ROLE "+ident(r.username)+" PASSWORD "+verifier+"; SELECT "+inTime+"; COMMIT")
	if err == nil {
		return nil
	}
	if codeOf(err) == codePrivilege {
		err = a.missingRight(is.spec.Admin.Username, r.username, f, err)
	}
	return rollback(ctx, c, err)
}

// holder is an account that lives on, as the target's catalogue shows it.
type holder struct {
	mark                   string
	superuser, privileged  bool // privileged: REPLICATION or BYPASSRLS
	adminOption, hasCreate bool
}

const holderSQL = `SELECT coalesce(shobj_description(r.oid, 'pg_authid'), ''), r.rolsuper, r.rolreplication OR r.rolbypassrls,
	pg_has_role(current_user, r.oid, 'MEMBER WITH ADMIN OPTION'), (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user)
	FROM pg_roles r WHERE r.rolname = $1`

// mayPut is the rule of HAZARDS 9 and 16: never a lease's account, and never by a
// leader whom a newer one has followed. That one is connected; so a deposed leader
// that connects again after the fence is noticed, too.
func (is *Issuer) mayPut(ctx context.Context, c *pgx.Conn, r *replacement) (holder, error) {
	var h holder
	err := c.QueryRow(ctx, holderSQL, r.username).Scan(&h.mark, &h.superuser, &h.privileged, &h.adminOption, &h.hasCreate)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return h, &issuers.Error{Kind: issuers.Gone, Detail: fmt.Sprintf("there is no account %q", r.username)}
	case err != nil:
		return h, err
	case strings.HasPrefix(h.mark, accountMark), strings.HasPrefix(h.mark, scopeMark), strings.HasPrefix(h.mark, viewsMark):
		return h, foreign(r.username)
	}
	newer, err := is.connections(ctx, c, func(term uint64) bool { return term > is.term })
	if err == nil && len(newer) > 0 {
		err = &issuers.Error{Kind: issuers.Superseded, Detail: "a newer leader is connected to the target"}
	}
	return h, err
}

// missingRight says what the admin account lacks to alter another one. Its own
// password every account may change.
func (h holder) missingRight(admin, username string, f *facts, err error) error {
	var what, fix string
	switch {
	case h.superuser:
		what = "only a superuser may change a superuser's password"
	case f.version >= versionSetFalse: // since then CREATEROLE alone no longer rules every role
		what = "it needs CREATEROLE and the ADMIN OPTION of that role"
		if !h.hasCreate {
			fix = fmt.Sprintf("ALTER ROLE %s CREATEROLE; ", ident(admin))
		}
		if !h.adminOption {
			fix += fmt.Sprintf("GRANT %s TO %s WITH ADMIN TRUE, INHERIT FALSE, SET FALSE", ident(username), ident(admin))
		}
	case h.privileged:
		what = "before version 16 only a superuser may alter an account with REPLICATION or BYPASSRLS"
	case !h.hasCreate:
		what, fix = "it needs CREATEROLE", fmt.Sprintf("ALTER ROLE %s CREATEROLE", ident(admin))
	default:
		what = "the server refuses"
	}
	detail := fmt.Sprintf("the admin account may not change the password of %q: %s", username, what)
	if fix = strings.TrimSuffix(fix, "; "); fix != "" {
		detail += "; run as a superuser: " + fix
	}
	return &issuers.Error{Kind: issuers.Refused, Detail: detail, Err: err}
}
