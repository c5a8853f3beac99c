package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// The second story: a privileged grant that two people co-sign.

const (
	twoPeople = `kind: Principal
name: "human:bo"
---
kind: Principal
name: "human:kim"
---
kind: Principal
name: "agent:deployer"
spec: {owner: "human:operator", agent: {model: some-model, version: "3"}}
---
kind: Group
name: dba
spec: {members: [{name: "human:bo"}, {name: "human:kim"}]}
---
kind: Role
name: orders/readwrite
spec:
  scope: [{type: database, identifier: orders, actions: [select, insert, update, delete], tables: [{name: "public.*"}]}]
  ttl: {default: 10m, max: 1h}
  approvals: [{group: dba, count: 2}]
  emergency: {max_ttl: 15m, review: [{group: dba, count: 2}]}
`
	mayAsk = `@id("deployers-may-ask") @approval_ttl("2h")
@description("Deployments and the operator may ask to write. The role's floor says who must agree.")
permit (principal, action == Action::"request", resource == Role::"orders/readwrite")
when { context.session.bound };
`
)

// approval is told in order, like the first story.
func (s *stage) approval(ctx context.Context) error {
	s.say("A privileged grant, co-signed by two people, shown on a real PostgreSQL (%s) and a real node (%s). What a second terminal would type is typed here by the demo. Nothing below is canned.", s.db.Address(), s.addr)
	s.agent = "deployer"
	var g granted
	for _, chapter := range []func(context.Context, *granted) error{
		s.floor, s.keys, s.ask, s.look, s.self, s.cosign, s.collect, s.regret, s.emergency, s.prove,
	} {
		if err := chapter(ctx, &g); err != nil {
			return errors.Join(err, g.close())
		}
	}
	s.say("%s", s.paint(green, "Done: every step behaved as described."))
	return g.close()
}

// granted is what the story goes on with.
type granted struct {
	minted
	id, hash string
	broken   string // the emergency's grant
}

func (s *stage) floor(ctx context.Context, _ *granted) error {
	s.title("A role that nobody gets alone")
	if _, _, err := s.quiet(ctx, "operator", exitDone, "target", "add", "postgres", s.db.Address(), "--name", "orders", "--username", "mayfly", "--database", "orders", "--password-file", "orders.pw"); err != nil {
		return err
	}
	if err := errors.Join(s.write("dba.yaml", twoPeople), s.write("ask.cedar", mayAsk)); err != nil {
		return err
	}
	s.say("The role's own record says that two of group dba must agree. Every replica of the ledger checks that, whatever policy says and whoever leads.")
	s.file("dba.yaml", twoPeople)
	s.file("ask.cedar", mayAsk)
	_, err := s.mayfly(ctx, "operator", exitDone, "apply", "-f", "dba.yaml", "-f", "ask.cedar")
	return err
}

func (s *stage) keys(ctx context.Context, _ *granted) error {
	s.title("Approvers have keys of their own")
	s.say("Bo and Kim enrol, and each registers a key to approve with. It is made in their own home; an SSH agent, a hardware key or a passkey serves as well.")
	for _, who := range []string{"agent:deployer", "human:bo", "human:kim"} {
		token, _, err := s.quiet(ctx, "operator", exitDone, "principal", "enroll", who, "--field", "token")
		if err != nil {
			return err
		}
		_, name, _ := strings.Cut(who, ":")
		s.people[name] = s.path(name)
		if err := s.write(name+".token", token); err != nil {
			return err
		}
		if _, _, err := s.quiet(ctx, name, exitDone, "login", "--enroll-token-file", name+".token"); err != nil {
			return err
		}
	}
	for _, name := range []string{"bo", "kim"} {
		if _, err := s.mayfly(ctx, name, exitDone, "key", "add", "--use", "approve"); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) ask(ctx context.Context, g *granted) error {
	s.title("The agent asks, and is told to wait")
	if _, err := s.mayfly(ctx, "deployer", exitDone, "task", "start", "release-42", "--purpose", "back-fill order totals, ticket 4712", "--ttl", "1h"); err != nil {
		return err
	}
	s.say("Nothing is minted. The answer (exit code 4) says whose word is missing, and until when; the agent can go on with other work and come back hours later, with the same key, on any node.")
	out, said, err := s.quiet(ctx, "deployer", exitWaiting, "request", "orders/readwrite", "--task", "release-42", "-o", "json")
	if err != nil {
		return err
	}
	s.typed("deployer", "mayfly request orders/readwrite --task release-42 -o json")
	s.output(out + said)
	var answer struct {
		Status  string `json:"status"`
		GrantID string `json:"grant_id"`
		Hash    string `json:"hash"`
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return fmt.Errorf("the answer is no JSON: %w", err)
	}
	if g.id, g.hash = answer.GrantID, answer.Hash; answer.Status != "waiting" || g.id == "" || len(g.hash) != 64 {
		return fmt.Errorf("the answer is not that of a grant that waits: %s", out)
	}
	return nil
}

func (s *stage) look(ctx context.Context, g *granted) error {
	s.title("The approver sees exactly what is asked")
	s.say("What Mayfly has proven stands apart from what is merely claimed. An omitted scope is spelt out: it is the whole role.")
	if _, err := s.mayfly(ctx, "bo", exitDone, "grant", "list", "--pending"); err != nil {
		return err
	}
	out, err := s.mayfly(ctx, "bo", exitDone, "grant", "show", g.id)
	if err != nil {
		return err
	}
	return wants(out, "agent:deployer", "ticket 4712", g.hash[:16])
}

func (s *stage) self(ctx context.Context, g *granted) error {
	s.title("Who has a part in it cannot approve it")
	s.say("The operator owns the agent. Even with a key of their own, and even though the development policy lets them do everything else, their word does not count.")
	if _, _, err := s.quiet(ctx, "operator", exitDone, "key", "add", "--use", "approve"); err != nil {
		return err
	}
	_, said, err := s.quiet(ctx, "operator", exitDenied, "grant", "approve", g.id, "--hash", g.hash[:16])
	s.typed("operator", "mayfly grant approve "+g.id+" --hash "+g.hash[:16])
	s.output(said)
	return err
}

func (s *stage) cosign(ctx context.Context, g *granted) error {
	s.title("Two people sign")
	s.say("Each signs the hash of the document that they were shown. --hash stands in for the question that a terminal would ask.")
	if _, _, err := s.quiet(ctx, "bo", exitDone, "grant", "approve", g.id, "--hash", g.hash[:16]); err != nil {
		return err
	}
	s.typed("bo", "mayfly grant approve "+g.id+" --hash "+g.hash[:16])
	s.output("(the document, as Kim sees it below)")
	out, err := s.mayfly(ctx, "kim", exitDone, "grant", "approve", g.id, "--hash", g.hash[:16])
	if err != nil {
		return err
	}
	return wants(out, "approved")
}

func (s *stage) collect(ctx context.Context, g *granted) error {
	s.title("The agent collects")
	out, err := s.mayfly(ctx, "deployer", exitDone, "grant", "collect", g.id)
	if err != nil {
		return err
	}
	if g.url, err = line(out, "url"); err != nil {
		return err
	}
	if g.session, err = s.login(ctx, g.url); err != nil {
		return err
	}
	s.say("Now it may write, as an account that lives for minutes.")
	return s.query(ctx, g.session, "UPDATE orders SET total = total + 1 WHERE id <= 3 RETURNING id, total")
}

func (s *stage) regret(ctx context.Context, g *granted) error {
	s.title("An approver takes it back")
	s.say("Kim has second thoughts. Revoking the grant withdraws what was issued on it, and ends the session that is open.")
	if _, err := s.mayfly(ctx, "kim", exitDone, "grant", "revoke", g.id, "--reason", "wrong table"); err != nil {
		return err
	}
	s.typed(s.agent+" sql", "SELECT 1")
	return s.cutOffSoon(ctx, g.session)
}

// cutOffSoon waits for the withdrawal, which takes a moment, and shows the
// session's last words.
func (s *stage) cutOffSoon(ctx context.Context, session *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		if _, err := session.Exec(ctx, "SELECT 1"); err != nil {
			tick.Stop()
			return s.refused(err, stateTerminated)
		}
		<-tick.C
	}
}

func (s *stage) emergency(ctx context.Context, g *granted) error {
	s.title("Break the glass, and answer for it")
	s.say("Three in the morning, nobody answers. The role lets a person begin at once, for a quarter of an hour, with a reason. It is loud, and it stays open until two people have reviewed it.")
	out, err := s.mayfly(ctx, "operator", exitDone, "request", "orders/readwrite", "--purpose", "orders are stuck", "--emergency", "--reason", "checkout is down, on-call since 02:50", "--field", "grant_id")
	if err != nil {
		return err
	}
	g.broken = strings.TrimSpace(out)
	_, said, err := s.quiet(ctx, "operator", exitDenied, "request", "orders/readwrite", "--purpose", "again", "--emergency", "--reason", "once more")
	s.say("A second one before the first was reviewed is refused:")
	s.typed("operator", "mayfly request orders/readwrite --purpose again --emergency --reason 'once more'")
	s.output(said)
	if err != nil {
		return err
	}
	hash, _, err := s.quiet(ctx, "bo", exitDone, "grant", "show", g.broken, "--field", "hash")
	if err != nil {
		return err
	}
	for _, name := range []string{"bo", "kim"} {
		if _, _, err := s.quiet(ctx, name, exitDone, "grant", "review", g.broken, "--verdict", "justified", "--note", "page 7731, seen it", "--hash", hash[:16]); err != nil {
			return err
		}
		s.typed(name, "mayfly grant review "+g.broken+" --verdict justified --note 'page 7731, seen it' --hash "+hash[:16])
	}
	out, err = s.mayfly(ctx, "bo", exitDone, "grant", "show", g.broken)
	if err != nil {
		return err
	}
	return wants(out, "justified")
}

func (s *stage) prove(ctx context.Context, g *granted) error {
	s.title("Years later, without the broker")
	export, _, err := s.quiet(ctx, "operator", exitDone, "audit", "export")
	if err != nil {
		return err
	}
	if err := s.write("ledger.jsonl", export); err != nil {
		return err
	}
	s.typed("operator", "mayfly audit export > ledger.jsonl")
	s.say("The node is stopped now. The export is executed again from its first record: every signature is verified, every quorum counted, by the same rules that the replicas used.")
	if err := s.stopNode(); err != nil {
		return err
	}
	out, err := s.mayfly(ctx, "operator", exitDone, "audit", "verify", "ledger.jsonl")
	if err != nil {
		return err
	}
	return wants(out, "verified")
}
