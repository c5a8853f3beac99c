package nats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// Times and sizes of what is asked of the system account.
const (
	readerLife = 10 * time.Minute // of the connection that only reads
	writerLife = time.Minute      // of one that changes the account: its server ends it then, whatever became of us
	pageSize   = 1024             // connections in one answer
	maxPages   = 256
	listTries  = 5
)

// system speaks to the servers as a user of the system account, which it makes
// itself: short-lived, and allowed these few requests and nothing else.
type system struct {
	dialer        dialer
	account       string // that leases are in
	systemAccount string
	operator      string // public identity key
	signer        nkeys.KeyPair
	label         string // for people who look at connections
}

// server is one that answered.
type server struct {
	id   string
	time time.Time // its own clock
}

// envelope is around every answer but a look-up's.
type envelope struct {
	Server struct {
		ID   string    `json:"id"`
		Time time.Time `json:"time"`
	} `json:"server"`
	Data   json.RawMessage `json:"data"`
	Statsz struct {
		ActiveServers int `json:"active_servers"`
	} `json:"statsz"`
	Error *struct {
		Code        int    `json:"code"`
		Description string `json:"description"`
	} `json:"error"`
}

const (
	subjectServers = "$SYS.REQ.SERVER.PING"
	subjectVarz    = "$SYS.REQ.SERVER.PING.VARZ"
	subjectUpdate  = "$SYS.REQ.CLAIMS.UPDATE"
)

func subjectLookup(account string) string { return "$SYS.REQ.ACCOUNT." + account + ".CLAIMS.LOOKUP" }
func subjectInfo(account string) string   { return "$SYS.REQ.ACCOUNT." + account + ".INFO" }
func subjectConns(account string) string  { return "$SYS.REQ.ACCOUNT." + account + ".CONNZ" }

// dial logs in as a user of the system account that may read and, if it is to
// write, also push the account's JWT.
func (s *system) dial(ctx context.Context, name string, life time.Duration, writes bool) (*conn, error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return nil, err
	}
	public, err := pair.PublicKey()
	if err != nil {
		return nil, err
	}
	c := jwt.NewUserClaims(public)
	c.Name, c.IssuerAccount, c.Tags = s.label, s.systemAccount, jwt.TagList{"mayfly"}
	c.Expires = time.Now().Add(life).Unix()
	c.Pub.Allow = jwt.StringList{subjectServers, subjectVarz, subjectLookup(s.account), subjectInfo(s.account), subjectConns(s.account), subjectConns(s.systemAccount)}
	if writes {
		c.Pub.Allow = append(c.Pub.Allow, subjectUpdate)
	}
	c.Sub.Allow = jwt.StringList{defaultInbox + ".>"}
	c.AllowedConnectionTypes = jwt.StringList{jwt.ConnectionTypeStandard}
	token, err := c.Encode(s.signer)
	if err != nil {
		return nil, err
	}
	return s.dialer.dial(ctx, login{jwt: token, name: name, sign: pair.Sign})
}

// all asks every server of ids and returns each one's answer by its id.
func (s *system) all(ctx context.Context, c *conn, subject string, payload []byte, ids map[string]server) (map[string]envelope, error) {
	ctx, cancel := context.WithTimeout(ctx, ioTimeout)
	defer cancel()
	out := map[string]envelope{}
	err := c.ask(ctx, subject, payload, func(body []byte) (bool, error) {
		var e envelope
		if err := json.Unmarshal(body, &e); err != nil || e.Server.ID == "" {
			return false, errors.New("an answer cannot be read")
		}
		if _, known := ids[e.Server.ID]; known {
			out[e.Server.ID] = e
		}
		return len(out) == len(ids), nil
	})
	if err != nil {
		return nil, fmt.Errorf("%d of %d servers answered: %w", len(out), len(ids), err)
	}
	return out, nil
}

// servers are all that belong to the system. Each counts those that it knows, and
// the highest count must be met: one that is cut off has a count too low, and one
// that just died still counts for a while, until when nothing is proven.
func (s *system) servers(ctx context.Context, c *conn) (map[string]server, error) {
	ctx, cancel := context.WithTimeout(ctx, ioTimeout)
	defer cancel()
	out := map[string]server{}
	want := 0
	err := c.ask(ctx, subjectServers, nil, func(body []byte) (bool, error) {
		var e envelope
		if err := json.Unmarshal(body, &e); err != nil || e.Server.ID == "" {
			return false, errors.New("an answer cannot be read")
		}
		out[e.Server.ID] = server{id: e.Server.ID, time: e.Server.Time}
		want = max(want, e.Statsz.ActiveServers, 1)
		return len(out) >= want, nil
	})
	if err != nil {
		return nil, fmt.Errorf("%d of %d servers answered: %w", len(out), want, err)
	}
	return out, nil
}

// trusted are the keys that may sign accounts, as every server has them.
func (s *system) trusted(ctx context.Context, c *conn, ids map[string]server) (map[string]bool, error) {
	answers, err := s.all(ctx, c, subjectVarz, nil, ids)
	if err != nil {
		return nil, err
	}
	var out map[string]bool
	for id, e := range answers {
		keys, err := s.operatorKeys(e)
		if err != nil {
			return nil, fmt.Errorf("server %s: %w", id, err)
		}
		if out == nil {
			out = keys
		}
		for k := range out { // only what all of them trust
			if !keys[k] {
				delete(out, k)
			}
		}
	}
	return out, nil
}

// trustedByOne are the keys that the first server to answer trusts.
func (s *system) trustedByOne(ctx context.Context, c *conn) (out map[string]bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, ioTimeout)
	defer cancel()
	err = c.ask(ctx, subjectVarz, nil, func(body []byte) (bool, error) {
		var e envelope
		if err := json.Unmarshal(body, &e); err != nil {
			return false, errors.New("an answer cannot be read")
		}
		out, err = s.operatorKeys(e)
		return true, err
	})
	return out, err
}

// operatorKeys reads an answer of VARZ.
func (s *system) operatorKeys(e envelope) (map[string]bool, error) {
	var varz struct {
		Operators []string `json:"trusted_operators_jwt"`
	}
	if err := json.Unmarshal(e.Data, &varz); err != nil {
		return nil, errors.New("VARZ cannot be read")
	}
	if len(varz.Operators) == 0 {
		return nil, errors.New("it trusts no operator")
	}
	return trustedKeys(varz.Operators[0], s.operator) // resolvers know the first one alone
}

// lookups returns the account's JWT as the first count servers have it, or as
// many as answer within a second after the first.
func (s *system) lookups(ctx context.Context, c *conn, count int) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, ioTimeout)
	defer cancel()
	var out [][]byte
	err := c.ask(ctx, subjectLookup(s.account), nil, func(body []byte) (bool, error) {
		if len(out) == 0 {
			time.AfterFunc(time.Second, cancel) // does nothing once the context has ended
		}
		if len(body) > 0 {
			out = append(out, body)
		}
		return len(out) >= count, nil
	})
	if err != nil && len(out) == 0 {
		if errors.Is(err, errNobody) {
			err = errors.New("no server answers look-ups of accounts: revocation needs servers with the resolver `full`")
		}
		return nil, err
	}
	return out, nil
}

// connection is a live one, as a server lists it.
type connection struct {
	Name string `json:"name"`
	User string `json:"authorized_user"` // public key
}

// connections lists an account's live connections on every server.
func (s *system) connections(ctx context.Context, c *conn, account string, ids map[string]server) ([]connection, error) {
	var err error
	for i := range listTries {
		if i > 0 && pause(ctx, i) != nil {
			break
		}
		var out []connection
		if out, err = s.listOnce(ctx, c, account, ids); !errors.Is(err, errMoved) {
			return out, err
		}
	}
	return nil, errors.Join(err, ctx.Err())
}

// errMoved: connections came or went between two pages, so that one of them may
// stand on neither.
var errMoved = errors.New("the list of connections changed while it was read")

func (s *system) listOnce(ctx context.Context, c *conn, account string, ids map[string]server) ([]connection, error) {
	var out []connection
	totals := map[string]int{}
	for page := range maxPages {
		payload, err := json.Marshal(map[string]any{"auth": true, "sort": "cid", "offset": page * pageSize, "limit": pageSize})
		if err != nil {
			return nil, err
		}
		answers, err := s.all(ctx, c, subjectConns(account), payload, ids)
		if err != nil {
			return nil, err
		}
		more := false
		for id, e := range answers {
			var list struct {
				Total       int          `json:"total"`
				Connections []connection `json:"connections"`
			}
			if e.Error != nil {
				return nil, &serverError{e.Error.Description}
			}
			if err := json.Unmarshal(e.Data, &list); err != nil {
				return nil, fmt.Errorf("server %s: CONNZ cannot be read", id)
			}
			if page > 0 && list.Total != totals[id] {
				return nil, errMoved
			}
			totals[id] = list.Total
			more = more || list.Total > (page+1)*pageSize
			out = append(out, list.Connections...)
		}
		if !more {
			return out, nil
		}
	}
	return nil, fmt.Errorf("a server has more than %d connections in one account", maxPages*pageSize)
}

// lacking returns those of the keys that a server's memory does not hold as
// revoked. One that has not loaded the account has no connection of it, and will
// read what was pushed.
func (s *system) lacking(ctx context.Context, c *conn, keys map[string]int64, ids map[string]server) (map[string]bool, error) {
	answers, err := s.all(ctx, c, subjectInfo(s.account), nil, ids)
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for id, e := range answers {
		if e.Error != nil {
			if strings.HasSuffix(e.Error.Description, "does not exist") {
				continue
			}
			return nil, &serverError{e.Error.Description}
		}
		var info struct {
			Revoked map[string]time.Time `json:"revoked_user"`
		}
		if err := json.Unmarshal(e.Data, &info); err != nil {
			return nil, fmt.Errorf("server %s: the account's INFO cannot be read", id)
		}
		for k, m := range keys {
			if info.Revoked[k].Unix() < m {
				out[k] = true
			}
		}
	}
	return out, nil
}

// lists says whether every server's memory lists those signing keys, without roles,
// and not the others. One that has not loaded the account will read what was
// pushed.
func (s *system) lists(ctx context.Context, c *conn, keys, not []string, ids map[string]server) (bool, error) {
	answers, err := s.all(ctx, c, subjectInfo(s.account), nil, ids)
	if err != nil {
		return false, err
	}
	for id, e := range answers {
		if e.Error != nil {
			if strings.HasSuffix(e.Error.Description, "does not exist") {
				continue
			}
			return false, &serverError{e.Error.Description}
		}
		var info struct {
			JWT string `json:"jwt"`
		}
		if err := json.Unmarshal(e.Data, &info); err != nil {
			return false, fmt.Errorf("server %s: the account's INFO cannot be read", id)
		}
		ac, err := jwt.DecodeAccountClaims(info.JWT)
		if err != nil {
			return false, fmt.Errorf("server %s: the account's JWT: %w", id, err)
		}
		for _, k := range keys {
			scope, listed := ac.SigningKeys[k]
			if scope != nil {
				return false, refused("the account lists the key %s with a role of its own; it must be listed without", k)
			}
			if !listed && k != s.account {
				return false, nil
			}
		}
		if slices.ContainsFunc(not, ac.SigningKeys.Contains) {
			return false, nil
		}
	}
	return true, nil
}

// push hands the servers the account's JWT. An answer that says no is a
// serverError; that of one server is enough, since all are asked afterwards.
func (s *system) push(ctx context.Context, c *conn, token string) error {
	ctx, cancel := context.WithTimeout(ctx, ioTimeout)
	defer cancel()
	return c.ask(ctx, subjectUpdate, []byte(token), func(body []byte) (bool, error) {
		var e envelope
		if err := json.Unmarshal(body, &e); err != nil {
			return false, errors.New("the answer to an update cannot be read")
		}
		if e.Error != nil {
			return false, &serverError{e.Error.Description}
		}
		return true, nil
	})
}
