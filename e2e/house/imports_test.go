package house

import (
	"path"
	"slices"
	"strings"
	"testing"
)

// may is the import table: which rooms of the house a room's product code and
// its tests may import. Standing in it is also how a room announces itself. The
// reason stands beside each; CONTRIBUTING.md prints the same table for people.
//
// "x/..." is x and everything below it. Tests may import what product code may,
// their own room, and tests.
var may = map[string]struct {
	product []string
	tests   []string
	why     string
}{
	"secret": {why: "every room wraps secrets with it, so it may need none of them"},
	"scope":  {tests: []string{}, why: "broker, client and issuers share it, so it may need none of them"},

	"client/keys":       {product: []string{"secret"}, why: "keys and proofs work without the rest of the client"},
	"client/escape":     {why: "whoever shows text to people escapes it alike, so it may need none of them"},
	"client/approve":    {product: []string{"client/escape", "client/wire", "scope"}, tests: []string{"broker/cosign", "client/keys"}, why: "signs what it shows; who collects the signatures is not its business"},
	"client/wire":       {product: []string{"scope"}, why: "both ends share the shapes, so they may pull in neither end"},
	"client/clienttest": {product: []string{"client/...", "scope", "secret"}, why: "a cluster that plays its part, for tests of what calls one"},
	"client":            {product: []string{"client/...", "scope", "secret"}, why: "workloads import it: it must not pull in the broker"},

	"raftstore": {product: []string{"secret"}, why: "a replicated store that knows nothing of credentials"},

	"issuers":                   {product: []string{"scope", "secret"}, why: "the interface that broker and issuers share"},
	"issuers/issuertest":        {product: []string{"issuers", "scope", "secret"}, why: "the suite every issuer runs"},
	"issuers/postgres/pgtest":   {product: []string{"e2e/servertest"}, why: "starts servers for every room's tests"},
	"issuers/ssh/sshdtest":      {product: []string{"e2e/servertest"}, why: "starts servers for every room's tests"},
	"issuers/mysql/mysqltest":   {product: []string{"e2e/servertest"}, why: "starts servers for every room's tests"},
	"issuers/redis/redistest":   {product: []string{"e2e/servertest"}, why: "starts servers for every room's tests"},
	"issuers/aws/awstest":       {product: []string{"e2e/servertest"}, why: "starts servers for every room's tests"},
	"issuers/nats/natstest":     {product: []string{"e2e/servertest"}, why: "starts servers for every room's tests"},
	"issuers/vault/vaulttest":   {product: []string{"e2e/servertest"}, why: "starts servers for every room's tests"},
	"issuers/github/githubtest": {why: "plays GitHub for tests"},

	"issuers/rabbitmq/rabbitmqtest":     {product: []string{"e2e/servertest"}, why: "starts servers for every room's tests"},
	"issuers/kubernetes/kubernetestest": {product: []string{"e2e/servertest"}, why: "starts servers for every room's tests"},
	"issuers/gcp/gcptest":               {product: []string{"e2e/servertest", "issuers/federation/federationtest"}, why: "plays Google for the room's tests"},
	"issuers/azure/azuretest":           {product: []string{"e2e/servertest", "issuers/federation/federationtest"}, why: "starts Azurite, and plays Entra, for the room's tests"},
	"issuers/federation/federationtest": {why: "reads what is published as a stranger would, for those who play a cloud"},
	"issuers/federation":                {product: []string{"issuers", "scope", "secret"}, why: "signs for the kinds that enter a cloud without a secret, and knows none of the clouds"},
	"issuers/*":                         {product: []string{"issuers", "issuers/federation", "scope", "secret"}, tests: []string{"issuers/issuertest", "issuers/*/..."}, why: "an issuer knows its target, not who asks nor why"},

	"broker/fault":             {why: "every room of the broker answers with it"},
	"broker/audit/tree":        {why: "ledger and offline verification share it: pure"},
	"broker/ledger":            {product: []string{"broker/audit/tree", "broker/cosign", "scope"}, tests: []string{"broker/ledger/ledgertest", "broker/cosign/cosigntest"}, why: "the replicated truth is pure: a room that could reach a clock or a network through it might differ between replicas"},
	"broker/cosign":            {tests: []string{"broker/cosign/cosigntest"}, why: "every replica runs it: pure, frozen, and of the standard library alone"},
	"broker/cosign/cosigntest": {product: []string{"broker/cosign"}, why: "approvers with software keys, for tests"},
	"broker/brokertest":        {product: []string{"broker/ledger", "broker/ledger/ledgertest", "broker/...", "issuers", "scope", "secret"}, why: "targets and logs in memory, for tests and simulations of the engine"},
	"plugins/protocol":         {product: []string{"issuers", "scope", "secret"}, why: "what a node and a plugin say to each other: neither end is its business"},
	"plugins/host":             {product: []string{"issuers", "plugins/protocol", "scope", "secret"}, tests: []string{"issuers/issuertest", "plugins/sdk/plugintest"}, why: "runs strangers' code, so it knows nothing of the broker that it could give away"},
	"plugins/sdk":              {product: []string{"issuers", "plugins/protocol"}, tests: []string{"scope"}, why: "authors import it: it must not pull in the broker, nor the host"},
	"plugins/sdk/plugintest":   {product: []string{"issuers", "issuers/issuertest", "plugins/host"}, why: "an author's conformance run, as a node would run the plugin"},
	"plugins/example/htpasswd": {product: []string{"issuers", "scope", "secret"}, tests: []string{"issuers/issuertest"}, why: "a kind knows its target, and not that it is a plugin"},
	"plugins/example":          {product: []string{"plugins/example/htpasswd", "plugins/sdk"}, tests: []string{"e2e/servertest", "issuers", "issuers/issuertest", "plugins/sdk/plugintest", "scope"}, why: "a plugin is its kind and one call"},
	"broker/ledger/ledgertest": {product: []string{"broker/ledger"}, why: "an in-memory ledger for tests"},
	"broker/audit":             {product: []string{"broker/audit/tree", "broker/fault"}, why: "offline verification must not need a broker"},
	"broker/audit/replay":      {product: []string{"broker/audit", "broker/cosign", "broker/fault", "broker/ledger"}, tests: []string{"broker/audit/tree", "broker/cosign/cosigntest", "broker/ledger/ledgertest", "scope"}, why: "an auditor executes the ledger by the replicas' code alone: no engine, no Cedar, no replicated store, so that years later there is little to trust"},
	"broker/identity":          {product: []string{"broker/fault", "secret"}, tests: []string{"client/keys"}, why: "says who calls, not what they may"},
	"broker/policy":            {product: []string{"broker/fault", "scope"}, why: "decides from facts that are handed to it"},
	"broker/notify":            {product: []string{"secret"}, why: "tells people of what the ledger holds; learns it through an interface, so that nothing it reads or sends decides anything"},
	"broker/seal":              {product: []string{"broker/fault", "secret"}, why: "opens and shuts; knows nothing of what it seals"},
	"broker": {
		product: []string{"broker/fault", "broker/ledger", "broker/cosign", "broker/identity", "broker/policy", "broker/audit", "broker/audit/tree", "client/wire", "issuers", "scope", "secret"},
		tests:   []string{"broker/...", "client/keys", "issuers/..."}, why: "the engine turns requests into leases through interfaces alone",
	},
	"broker/node": {
		product: []string{"broker", "broker/fault", "broker/ledger", "broker/identity", "broker/audit", "broker/audit/tree", "broker/notify", "broker/seal", "client/wire", "issuers", "raftstore", "secret"},
		tests:   []string{"broker/...", "client/...", "issuers/...", "scope"}, why: "the one place that ties engine, seal and store together",
	},
	"broker/api/console": {
		product: []string{"broker", "broker/cosign", "broker/fault", "broker/ledger", "client/wire", "scope", "secret"},
		tests:   []string{"broker/api/console/consoletest"}, why: "shows people what the engine says, and hands it what they sign",
	},
	"broker/api/console/consoletest": {product: []string{"broker", "broker/api/console", "broker/cosign", "broker/fault", "broker/ledger", "client/wire", "scope", "secret"}, why: "a broker that plays its part, for tests and pictures of the console"},
	"broker/api": {
		product: []string{"broker", "broker/api/console", "broker/fault", "broker/identity", "broker/ledger", "client/wire", "scope", "secret"},
		tests:   []string{"broker/node", "client/..."}, why: "decodes, calls the broker, encodes",
	},

	"cmd/mayfly":     {product: []string{"broker/...", "client/...", "issuers/...", "plugins/host", "scope", "secret"}, tests: []string{"issuers/..."}, why: "wires the concrete issuers in; reaches the store through broker/node alone"},
	"scripts/*":      {why: "tools of the repository, not of the product"},
	"e2e/servertest": {why: "runs real servers for every room's tests, so it may need none of them"},
	"e2e/...":        {product: []string{"..."}, why: "tests may look at everything"},
}

// within says whether room is named by one of the patterns.
func within(room string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(room, p) })
}

func matches(room, pattern string) bool {
	if pattern == "..." {
		return true
	}
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return matches(room, base) || room != "." && matches(path.Dir(room), pattern)
	}
	ok, err := path.Match(pattern, room)
	return ok && err == nil
}

// rule finds a room's line: its own name before a pattern.
func rule(room string) (pattern string, ok bool) {
	if _, ok := may[room]; ok {
		return room, true
	}
	for p := range may {
		if matches(room, p) {
			return p, true
		}
	}
	return "", false
}

// Imports run one way, so that each room can be read, tested and trusted by
// itself, and so that a library, or the broker, does not end up inside the
// workloads that import the client.
func TestImportsRunOneWay(t *testing.T) {
	x := read(t)
	for _, s := range x.sources {
		pattern, ok := rule(s.room)
		if !ok {
			t.Errorf("%s: %s is not in the import table; add it there, and to CONTRIBUTING.md, with its reason", s.name, s.room)
			continue
		}
		r := may[pattern]
		for _, i := range s.file.Imports {
			to, ours := strings.CutPrefix(strings.Trim(i.Path.Value, `"`), module+"/")
			if !ours {
				continue
			}
			allowed := within(to, r.product) || s.test && (to == s.room || within(to, r.tests))
			if !allowed {
				t.Errorf("%s: %s must not import %s: %s", x.at(i), s.room, to, r.why)
			}
			if s.product() && forTests(to) {
				t.Errorf("%s: product code must not import %s, which is there for tests", x.at(i), to)
			}
		}
	}
}

// A room in the table that is gone is a rule that guards nothing.
func TestImportTableNamesRoomsThatExist(t *testing.T) {
	rooms := read(t).rooms()
	for p := range may {
		found := false
		for room := range rooms {
			found = found || matches(room, p)
		}
		if !found {
			t.Errorf("the import table names %s, which does not exist", p)
		}
	}
}

// owns says which rooms alone may use a library, so that replacing it, or
// auditing its use, stays the work of one room.
var owns = map[string][]string{
	"github.com/hashicorp/raft":            {"raftstore"},
	"github.com/hashicorp/raft-wal":        {"raftstore"},
	"go.etcd.io/bbolt":                     {"raftstore", "broker/audit/replay"}, // the latter for a file that lives as long as one verification
	"github.com/cedar-policy/cedar-go":     {"broker/policy"},
	"github.com/cloudflare/circl":          {"broker/seal"},
	"golang.org/x/crypto/chacha20poly1305": {"broker/seal"},
	"github.com/coreos/go-oidc/v3":         {"broker/identity"},
	"github.com/go-webauthn/webauthn":      {"broker"},
	"github.com/chromedp/chromedp":         {}, // drives a browser, for tests and pictures
	"github.com/danielgtaylor/huma/v2":     {"broker/api"},
	"github.com/urfave/cli/v2":             {"cmd/mayfly"},
	"github.com/jackc/pgx/v5":              {"issuers/postgres", "issuers/postgres/pgtest"},
	"github.com/go-sql-driver/mysql":       {"issuers/mysql", "issuers/mysql/mysqltest"},
	"filippo.io/edwards25519":              {"issuers/mysql"}, // MariaDB's ed25519 has passwords for seeds, of any length; the driver needs it anyway
	"github.com/prometheus/client_golang":  {"broker/api", "broker/node", "cmd/mayfly"},
	"os/exec":                              {"cmd/mayfly", "e2e/servertest", "plugins/host", "plugins/sdk/plugintest", "scripts/tally"},
	"github.com/hashicorp/go-plugin":       {"plugins/host", "plugins/protocol", "plugins/sdk"},
	"google.golang.org/grpc":               {"plugins/host", "plugins/protocol", "plugins/sdk"}, // spoken to plugins alone
	"github.com/redis/go-redis/v9":         {"issuers/redis", "issuers/redis/redistest"},
	"github.com/aws/aws-sdk-go-v2":         {"issuers/aws", "issuers/aws/awstest"},
	"github.com/aws/smithy-go":             {"issuers/aws"},                           // the SDK's errors
	"reflect":                              {"broker/api"},                            // for the OpenAPI document alone
	"github.com/rabbitmq/amqp091-go":       {},                                        // plays a lease's client, in tests; the issuer itself speaks HTTP
	"github.com/nats-io/jwt/v2":            {"issuers/nats", "issuers/nats/natstest"}, // the claims as NATS's own tools write them
	"github.com/nats-io/nkeys":             {"issuers/nats", "issuers/nats/natstest"},
	"github.com/nats-io/nats.go":           {"issuers/nats/natstest"}, // tests log in as other people's clients do
	"github.com/hashicorp/vault":           {"issuers/vault"},
	"unsafe":                               {},
	"math/rand":                            {}, // secrets take crypto/rand, jitter math/rand/v2
	"encoding/gob":                         {}, // decodes what it was not asked to
}

func TestLibrariesHaveOwners(t *testing.T) {
	x := read(t)
	for _, s := range x.sources {
		if s.test || !s.product() && !s.prop {
			continue
		}
		for _, i := range s.file.Imports {
			lib := strings.Trim(i.Path.Value, `"`)
			for name, rooms := range owns {
				exact := !strings.Contains(name, ".") // "math/rand" is not "math/rand/v2"
				used := lib == name || !exact && strings.HasPrefix(lib, name+"/")
				if used && !slices.Contains(rooms, s.room) {
					t.Errorf("%s: %s uses %s, which is left to %v", x.at(i), s.room, name, rooms)
				}
			}
		}
	}
}
