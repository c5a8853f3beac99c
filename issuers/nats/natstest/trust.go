package natstest

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// Trust is an operator with its accounts, and all their keys. Seeds are as text;
// names without Seed are public keys.
type Trust struct {
	Operator, OperatorSeed, OperatorJWT string // the identity
	SigningOperatorSeed                 string // a signing key of the operator
	System, SystemSeed                  string // the system account
	Account, AccountSeed                string // the account for users
	SigningSeed                         string // a signing key of the account
	ScopedSeed                          string // a signing key of the account, with a role

	systemJWT, accountJWT string
}

// AccountJWT is the account's JWT as the server began with it.
func (t *Trust) AccountJWT() string { return t.accountJWT }

type pair struct {
	nkeys.KeyPair
	public, seed string
}

func newPair(make func() (nkeys.KeyPair, error)) (pair, error) {
	kp, err := make()
	if err != nil {
		return pair{}, err
	}
	public, err := kp.PublicKey()
	if err != nil {
		return pair{}, err
	}
	seed, err := kp.Seed()
	return pair{kp, public, string(seed)}, err
}

func newTrust() (*Trust, error) {
	var p [7]pair
	for i := range p {
		kind := nkeys.CreateAccount
		if i < 2 {
			kind = nkeys.CreateOperator
		}
		var err error
		if p[i], err = newPair(kind); err != nil {
			return nil, err
		}
	}
	identity, operator, system, account, signing, scoped := p[0], p[1], p[2], p[3], p[4], p[5]
	t := &Trust{
		Operator: identity.public, OperatorSeed: identity.seed, SigningOperatorSeed: operator.seed,
		System: system.public, SystemSeed: system.seed, Account: account.public, AccountSeed: account.seed, SigningSeed: signing.seed, ScopedSeed: scoped.seed,
	}
	oc := jwt.NewOperatorClaims(identity.public)
	oc.Name, oc.SystemAccount = "test", system.public
	oc.SigningKeys.Add(operator.public)
	sc := jwt.NewAccountClaims(system.public)
	sc.Name = "SYS"
	ac := jwt.NewAccountClaims(account.public)
	ac.Name = "APP"
	ac.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: 1 << 20, DiskStorage: -1, Streams: 8, Consumer: 64}
	ac.SigningKeys.Add(signing.public)
	role := jwt.NewUserScope()
	role.Key, role.Role = scoped.public, "reader"
	role.Template.Sub.Allow.Add("a.>")
	ac.SigningKeys.AddScopedSigner(role)
	var err error
	if t.OperatorJWT, err = oc.Encode(identity); err != nil {
		return nil, err
	}
	if t.systemJWT, err = sc.Encode(identity); err != nil {
		return nil, err
	}
	t.accountJWT, err = ac.Encode(identity)
	return t, err
}

// user makes the login of a user with every right in the account whose seed that
// is.
func user(seed string) (natsgo.Option, error) {
	kp, err := nkeys.FromSeed([]byte(seed))
	if err != nil {
		return nil, err
	}
	u, err := newPair(nkeys.CreateUser)
	if err != nil {
		return nil, err
	}
	token, err := jwt.NewUserClaims(u.public).Encode(kp)
	return natsgo.UserJWTAndSeed(token, u.seed), err
}

// SystemUser logs in to the system account, with every right. The caller closes it.
func (s *Server) SystemUser(opts ...natsgo.Option) (*natsgo.Conn, error) {
	return s.as(s.SystemSeed, opts)
}

// AccountUser logs in to the account, with every right. The caller closes it.
func (s *Server) AccountUser(opts ...natsgo.Option) (*natsgo.Conn, error) {
	return s.as(s.AccountSeed, opts)
}

func (s *Server) as(seed string, opts []natsgo.Option) (*natsgo.Conn, error) {
	who, err := user(seed)
	if err != nil {
		return nil, err
	}
	return s.Dial(append(opts, who)...)
}

// SystemConn returns a connection of the system account that ends with the test.
func (s *Server) SystemConn(t testing.TB) *natsgo.Conn { return s.conn(t, s.SystemUser) }

// AccountConn returns a connection of the account, with every right, that ends
// with the test.
func (s *Server) AccountConn(t testing.TB) *natsgo.Conn { return s.conn(t, s.AccountUser) }

func (s *Server) conn(t testing.TB, dial func(...natsgo.Option) (*natsgo.Conn, error)) *natsgo.Conn {
	t.Helper()
	nc, err := dial()
	if err != nil {
		t.Fatalf("natstest: %v", err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// Claims looks the account's JWT up.
func (s *Server) Claims(ctx context.Context) (*jwt.AccountClaims, error) {
	nc, err := s.SystemUser()
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	m, err := nc.RequestWithContext(ctx, "$SYS.REQ.ACCOUNT."+s.Account+".CLAIMS.LOOKUP", nil)
	if err != nil {
		return nil, err
	}
	return jwt.DecodeAccountClaims(string(m.Data))
}

// Push signs the account's claims by the operator's identity and pushes them, as
// nsc does.
func (s *Server) Push(ctx context.Context, c *jwt.AccountClaims) error {
	kp, err := nkeys.FromSeed([]byte(s.OperatorSeed))
	if err != nil {
		return err
	}
	token, err := c.Encode(kp)
	if err != nil {
		return err
	}
	nc, err := s.SystemUser()
	if err != nil {
		return err
	}
	defer nc.Close()
	m, err := nc.RequestWithContext(ctx, "$SYS.REQ.CLAIMS.UPDATE", []byte(token))
	if err != nil {
		return err
	}
	var answer struct {
		Error *struct {
			Description string `json:"description"`
		} `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return err
	}
	if answer.Error != nil {
		return fmt.Errorf("the server refuses the push: %s", answer.Error.Description)
	}
	return nil
}

// Connections lists the names and user keys of the account's live connections on
// this server.
func (s *Server) Connections(ctx context.Context) (names, users []string, err error) {
	nc, err := s.SystemUser()
	if err != nil {
		return nil, nil, err
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	m, err := nc.RequestWithContext(ctx, "$SYS.REQ.SERVER."+nc.ConnectedServerId()+".CONNZ", []byte(`{"auth":true,"acc":"`+s.Account+`","limit":100000}`))
	if err != nil {
		return nil, nil, err
	}
	var answer struct {
		Data struct {
			Connections []struct {
				NameTag string `json:"name_tag"`
				User    string `json:"authorized_user"`
			} `json:"connections"`
		} `json:"data"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return nil, nil, err
	}
	for _, c := range answer.Data.Connections {
		names, users = append(names, c.NameTag), append(users, c.User)
	}
	return names, users, nil
}
