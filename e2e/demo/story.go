package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/jackc/pgx/v5"
)

// SQLSTATEs in which PostgreSQL refuses.
const (
	statePrivilege  = "42501" // insufficient_privilege
	statePassword   = "28P01" // invalid_password: PostgreSQL does not tell a missing role from a wrong password
	stateNoRole     = "28000" // invalid_authorization_specification
	stateTerminated = "57P01" // admin_shutdown: the session was ended
)

// A role's scope, narrowed to two columns of one table.
const twoColumns = `[{"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":"public.customers","columns":["id","name"]}]}]`

const (
	objects = `kind: Principal
name: agent:billing-bot
spec: {owner: "human:operator", agent: {model: some-model, version: "3"}}
---
kind: Group
name: billing
spec: {members: [{name: "agent:billing-bot"}]}
`
	permit = `@id("billing-reads-orders") @max_ttl("15m")
@description("The billing agents may read orders, in a task, for a quarter of an hour at a time.")
permit (principal in Group::"billing", action == Action::"request", resource == Role::"orders/readonly")
when { context.session.bound && context.purpose != "" };
`
)

// story is the main job, told in order. Each chapter needs the ones before it.
func (s *stage) story(ctx context.Context) error {
	s.say("Mayfly, shown on a real PostgreSQL (%s) and a real node (%s), both started just now and ended with this demo. Nothing below is canned.", s.db.Address(), s.addr)
	var m minted
	for _, chapter := range []func(context.Context, *minted) error{
		s.configure, s.enrol, s.access, s.denied, s.narrow, s.watch, s.end, s.audit,
	} {
		if err := chapter(ctx, &m); err != nil {
			return errors.Join(err, m.close())
		}
	}
	s.say("%s", s.paint(green, "Done: every step behaved as described."))
	return m.close()
}

// minted is what the agent got on the way.
type minted struct {
	url, username, lease string
	session              *pgx.Conn // stays open until the task's end ends it
}

func (m *minted) close() error {
	if m.session == nil || m.session.IsClosed() {
		return nil
	}
	return m.session.Close(context.Background())
}

func (s *stage) configure(ctx context.Context, _ *minted) error {
	s.title("An operator adds a database")
	s.say("The operator names the database once. Mayfly checks its own rights on it before anything is written, and offers working roles.")
	out, err := s.mayfly(ctx, "operator", exitDone, "target", "add", "postgres", s.db.Address(), "--name", "orders", "--username", "mayfly", "--database", "orders", "--password-file", "orders.pw")
	if err != nil {
		return err
	}
	if err := wants(out, "orders/readonly", "orders/readwrite"); err != nil {
		return err
	}
	s.say("Default deny: nobody may use it yet. This lets one group of agents read, in a task, for a quarter of an hour at a time.")
	if err := errors.Join(s.write("billing.yaml", objects), s.write("billing.cedar", permit)); err != nil {
		return err
	}
	s.file("billing.yaml", objects)
	s.file("billing.cedar", permit)
	_, err = s.mayfly(ctx, "operator", exitDone, "apply", "-f", "billing.yaml", "-f", "billing.cedar")
	return err
}

func (s *stage) enrol(ctx context.Context, _ *minted) error {
	s.title("An agent gets an identity, not a key to the database")
	s.say("A one-time token introduces the agent. Its private key is made in its own home and never leaves it.")
	token, _, err := s.quiet(ctx, "operator", exitDone, "principal", "enroll", "agent:billing-bot", "--field", "token")
	if err != nil {
		return err
	}
	s.typed("operator", "mayfly principal enroll agent:billing-bot --field token > token.txt")
	if err := s.write("token.txt", token); err != nil {
		return err
	}
	if _, err := s.mayfly(ctx, "billing-bot", exitDone, "login", "--enroll-token-file", "token.txt"); err != nil {
		return err
	}
	out, err := s.mayfly(ctx, "billing-bot", exitDone, "whoami")
	if err != nil {
		return err
	}
	return wants(out, "agent:billing-bot", "dpop")
}

func (s *stage) access(ctx context.Context, m *minted) error {
	s.title("A task, and a credential inside it")
	s.say("Everything is issued inside a task with a purpose and a deadline.")
	if _, err := s.mayfly(ctx, "billing-bot", exitDone, "task", "start", "month-end", "--purpose", "October invoices, ticket 4711", "--ttl", "30m"); err != nil {
		return err
	}
	s.say("The agent asks for a role. Policy decides, the ledger commits the lease, and only then a fresh account is made in PostgreSQL.")
	out, err := s.mayfly(ctx, "billing-bot", exitDone, "request", "orders/readonly", "--task", "month-end", "--ttl", "10m")
	if err != nil {
		return err
	}
	for name, into := range map[string]*string{"url": &m.url, "username": &m.username, "lease": &m.lease} {
		if *into, err = line(out, name); err != nil {
			return err
		}
	}
	s.say("It is an ordinary PostgreSQL login.")
	if m.session, err = s.login(ctx, m.url); err != nil {
		return err
	}
	if err := s.query(ctx, m.session, "SELECT session_user, count(*) AS orders, sum(total) AS turnover FROM orders"); err != nil {
		return err
	}
	s.say("It is read-only because the role is: PostgreSQL itself refuses the rest.")
	s.typed(s.agent+" sql", "DELETE FROM orders")
	_, err = m.session.Exec(ctx, "DELETE FROM orders")
	return s.refused(err, statePrivilege)
}

func (s *stage) denied(ctx context.Context, _ *minted) error {
	s.title("A denial that explains itself")
	s.say("No policy lets the agent write. The denial is a decision with a number (and exit code 3).")
	_, said, err := s.quiet(ctx, "billing-bot", exitDenied, "request", "orders/readwrite", "--task", "month-end")
	s.typed("billing-bot", "mayfly request orders/readwrite --task month-end")
	s.output(said)
	if err != nil {
		return err
	}
	at := strings.Index(said, "dec_")
	if at < 0 {
		return fmt.Errorf("the denial names no decision:\n%s", said)
	}
	decision := strings.FieldsFunc(said[at:], func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' })[0]
	s.say("Whoever runs the system can ask why, now or in a year.")
	out, err := s.mayfly(ctx, "operator", exitDone, "policy", "explain", decision)
	if err != nil {
		return err
	}
	return wants(out, decision, "orders/readwrite", "agent:billing-bot")
}

func (s *stage) narrow(ctx context.Context, _ *minted) error {
	s.title("Scope only narrows: two columns of one table")
	s.say("The next piece of work needs names, not card numbers. The agent asks for less than its role allows, and gets an account that can do no more.")
	out, err := s.mayfly(ctx, "billing-bot", exitDone, "request", "orders/readonly", "--task", "month-end", "--scope", twoColumns)
	if err != nil {
		return err
	}
	url, err := line(out, "url")
	if err != nil {
		return err
	}
	db, err := s.login(ctx, url)
	if err != nil {
		return err
	}
	err = s.query(ctx, db, "SELECT id, name FROM customers ORDER BY id")
	if err == nil {
		s.typed(s.agent+" sql", "SELECT name, card_number FROM customers")
		_, refusal := db.Exec(ctx, "SELECT name, card_number FROM customers")
		err = s.refused(refusal, statePrivilege)
	}
	return errors.Join(err, db.Close(ctx))
}

func (s *stage) watch(ctx context.Context, m *minted) error {
	s.title("Who holds what, and why")
	s.say("The operator sees every live credential …")
	out, err := s.mayfly(ctx, "operator", exitDone, "lease", "list", "--target", "orders", "--state", "open")
	if err != nil {
		return err
	}
	if err := wants(out, m.lease); err != nil {
		return err
	}
	s.say("… and gets from an account seen in the database's own log to the agent, the task, the purpose and the decision.")
	if out, err = s.mayfly(ctx, "operator", exitDone, "whohas", m.username); err != nil {
		return err
	}
	return wants(out, "agent:billing-bot", m.lease, "ticket 4711")
}

func (s *stage) end(ctx context.Context, m *minted) error {
	s.title("The task ends, and everything with it")
	s.say("One command withdraws both credentials. --wait returns when PostgreSQL has confirmed.")
	if _, err := s.mayfly(ctx, "billing-bot", exitDone, "task", "end", "month-end", "--wait", "20s"); err != nil {
		return err
	}
	s.say("The session that was still open is gone:")
	s.typed(s.agent+" sql", "SELECT 1")
	if err := s.cutOff(ctx, m.session); err != nil {
		return err
	}
	s.say("A new login is refused, in PostgreSQL's own words:")
	s.typed(s.agent+" sql", `\connect postgres://`+m.username+":…@"+s.db.Address()+"/orders")
	conn, err := s.login(ctx, m.url)
	if err == nil {
		return errors.Join(errors.New("the credential of an ended task still logs in"), conn.Close(ctx))
	}
	if err := s.refused(err, statePassword, stateNoRole); err != nil {
		return err
	}
	s.say("The lease keeps the receipt: what PostgreSQL's catalogue said after the withdrawal. And nothing is left over on either side.")
	out, err := s.mayfly(ctx, "operator", exitDone, "lease", "show", m.lease)
	if err != nil {
		return err
	}
	if err := wants(out, "ended"); err != nil {
		return err
	}
	_, err = s.mayfly(ctx, "operator", exitDone, "reconcile", "orders")
	return err
}

// cutOff fails if a session still answers, and shows its last words.
func (s *stage) cutOff(ctx context.Context, session *pgx.Conn) error {
	_, err := session.Exec(ctx, "SELECT 1")
	if err == nil {
		return errors.New("the session of an ended task still answers")
	}
	return s.refused(err, stateTerminated)
}

func (s *stage) audit(ctx context.Context, _ *minted) error {
	s.title("The record, checked without the broker")
	s.say("Every command is a leaf of a Merkle tree. The live node checks its own record …")
	out, err := s.mayfly(ctx, "operator", exitDone, "audit", "verify")
	if err != nil {
		return err
	}
	if err := wants(out, "verified"); err != nil {
		return err
	}
	export, _, err := s.quiet(ctx, "operator", exitDone, "audit", "export")
	if err != nil {
		return err
	}
	s.typed("operator", "mayfly audit export > ledger.jsonl")
	s.output(fmt.Sprintf("(%d lines, %d KiB)", strings.Count(export, "\n"), len(export)>>10))
	if err := s.write("ledger.jsonl", export); err != nil {
		return err
	}
	s.say("… and an export of it can be checked anywhere. The node is stopped now, so this is offline:")
	if err := s.stopNode(); err != nil {
		return err
	}
	if out, err = s.mayfly(ctx, "operator", exitDone, "audit", "verify", "ledger.jsonl"); err != nil {
		return err
	}
	if err := wants(out, "verified"); err != nil {
		return err
	}
	s.say("Change one byte of what was recorded, and it shows:")
	return s.tamper(ctx)
}

// tamper changes one character of a recorded command.
func (s *stage) tamper(ctx context.Context) error {
	whole, err := os.ReadFile(s.path("ledger.jsonl"))
	if err != nil {
		return err
	}
	forged := bytes.Replace(whole, []byte("ticket 4711"), []byte("ticket 4712"), 1)
	if bytes.Equal(forged, whole) {
		return errors.New("the export does not hold the task's purpose")
	}
	if err := s.write("forged.jsonl", string(forged)); err != nil {
		return err
	}
	s.typed("operator", "sed '0,/ticket 4711/s//ticket 4712/' ledger.jsonl > forged.jsonl")
	_, err = s.mayfly(ctx, "operator", exitFailed, "audit", "verify", "forged.jsonl")
	return err
}
