package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

func targetCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "target", Category: forOperators, Usage: "the systems on which credentials are minted",
		Subcommands: []*cli.Command{targetAddCommand(s), {
			Name: "check", Usage: "check the connection to a target and the broker's rights on it", ArgsUsage: "T",
			Description: `Examples:
  mayfly target check orders`,
			Action: s.with(1, 2, func(c *cli.Context, cl *client.Client, args []string) error {
				name, err := named("Target", args)
				if err != nil {
					return err
				}
				report, err := cl.CheckTarget(c.Context, name)
				if err != nil {
					return err
				}
				if err := s.show(report, func(p *page) { p.findings(report.Findings) }); err != nil {
					return err
				}
				if !report.OK {
					return told(exitFailed)
				}
				return nil
			}),
		}},
	}
}

func targetAddCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "add", Usage: "check a system, and write a target with working roles for it", ArgsUsage: "KIND [ADDRESS]",
		Description: `Checks the connection and the rights first, and says exactly what is missing.
Then writes the target T and its roles (T/readonly, T/readwrite where the kind
has them), and prints the permit that lets somebody use them.

Examples:
  mayfly target add postgres db.internal:5432 --name orders --username mayfly --database orders --password-file pw
  mayfly target add postgres postgres://mayfly@db.internal/orders --name orders --tls-ca-file ca.pem
  mayfly target add postgres localhost --name scratch --tls-mode disable --grant developers --dry-run
  mayfly target add mysql db.internal --name shop --database shop --set hosts='["10.%"]' --password-file pw
  mayfly target add redis cache.internal --name cache --username mayfly --tls-ca-file ca.pem
  mayfly target add rabbitmq rabbit.internal --name bus --username mayfly --set vhost=orders --password-file pw
  mayfly target add nats nats.internal --name bus --set subjects='["orders.*"]' --password-file account-signing.nk
  mayfly target add kubernetes https://10.0.0.1:6443 --name prod --set namespaces='["shop"]' --tls-ca-file ca.pem --password-file token
  mayfly target add vault https://vault.internal:8200 --name legacy --username ROLE_ID --password-file secret-id --set paths='["database/creds/app"]'
  mayfly target add ssh --name fleet --set principals='["deploy"]'
  mayfly target add jwt --name internal --set audiences='["https://api.internal"]'
  mayfly target add aws --name prod --set region=eu-central-1 --set role_arn=arn:aws:iam::123456789012:role/mayfly --set resources='["arn:aws:s3:::orders/*"]'
  mayfly target add gcp --name lake --set service_account=A@P.iam.gserviceaccount.com --set provider=projects/N/locations/global/workloadIdentityPools/P/providers/Q
  mayfly target add azure --name blobs --set tenant=ID --set client_id=ID --set account=A --set resources='["az://orders/*"]'
  mayfly target add kv --name keys --set entries='{"stripe": {"owner": "human:ann", "value": {"from_file": "stripe.key"}}}'
  mayfly target add github --name code --set client_id=Iv23liABCDEF0123456789 --set owner=Acme --set repositories='["Acme/orders"]' --password-file app.pem
  mayfly target add htpasswd --name site --spec site.yaml       # a plugin's kind`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "what the target is called (`T`)"},
			&cli.StringFlag{Name: "username", Usage: "the broker's own account there (`U`)"},
			&cli.StringFlag{Name: "password-file", Usage: "its password or token; - reads it from stdin, without the flag it is asked for (`F|-`)"},
			&cli.StringFlag{Name: "database", Usage: "the database (`D`)"},
			&cli.StringFlag{Name: "tls-mode", Usage: "`verify-full|verify-ca|disable`; verify-full unless the address is this machine"},
			&cli.StringFlag{Name: "tls-ca-file", Usage: "the CA of the target's certificate in PEM (`F`)"},
			&cli.StringFlag{Name: "zone", Usage: "the zone it belongs to (`Z`)"},
			&cli.StringSliceFlag{Name: "label", Usage: "a label, as in classification=pii (`K=V`)"},
			&cli.StringSliceFlag{Name: "set", Usage: "another key of the kind's spec, as JSON or text (`KEY=VALUE`)"},
			&cli.StringSliceFlag{Name: "secret", Usage: "another secret of the kind's, from a file (`NAME=F|-`)"},
			&cli.StringFlag{Name: "spec", Usage: "more keys of the kind's spec, and its secrets, in YAML (`F`)"},
			&cli.StringFlag{Name: "grant", Usage: "make the permit for this group and show it (`GROUP`)"},
			&cli.BoolFlag{Name: "dry-run", Usage: "check, and say what would be written"},
			waitFlag(),
			&cli.StringFlag{Name: "reason", Usage: "why, for those who approve the change (`R`)"},
		},
		Action: s.with(1, 2, s.addTarget),
	}
}

// addTarget is the whole of `target add`.
func (s *shell) addTarget(c *cli.Context, cl *client.Client, args []string) error {
	name := c.String("name")
	if name == "" {
		return usage("--name T is missing: what should the target be called?")
	}
	address := ""
	if len(args) == 2 {
		address = args[1]
	}
	draft, err := s.draftTarget(c, args[0], address)
	if err != nil {
		return err
	}
	spec, err := json.Marshal(draft.spec)
	if err != nil {
		return err
	}
	if s.output == asTable {
		s.notice("checking %s …", clean(name))
	}
	report, err := cl.PreviewTarget(c.Context, wire.TargetPreview{Name: name, Spec: spec, Secrets: draft.secrets})
	if err != nil {
		return err
	}
	if s.output == asTable {
		p := &page{w: s.err, paint: s.painter(s.err)}
		p.findings(report.Findings)
	}
	if !report.OK {
		return s.refuseTarget(draft.kind(), name, report)
	}
	in := wire.ApplyRequest{DryRun: c.Bool("dry-run"), Reason: strings.TrimSpace(c.String("reason")), Objects: []wire.Object{{Kind: "Target", Name: name, Spec: spec, Secrets: draft.secrets}}}
	in.Objects = append(in.Objects, report.Roles...)
	permit := report.Permit
	if g := c.String("grant"); g != "" {
		permit = permitFor(name, g, report.Roles)
	}
	answer, err := cl.Apply(c.Context, in)
	if err != nil {
		return err
	}
	show := func(waits bool) error {
		return s.showTarget(draft.kind(), name, c.String("grant"), permit, report, answer, waits)
	}
	if answer.GrantID == "" || answer.DryRun {
		return show(false)
	}
	return s.changeWaits(c, cl, answer.GrantID, &answer.Waiting, show)
}

// refuseTarget says what to run on the target, and ends with exit code 1.
func (s *shell) refuseTarget(kind, name string, report wire.TargetReport) error {
	if s.output != asTable || s.field != "" {
		if err := s.show(report, nil); err != nil {
			return err
		}
	}
	var fixes []string
	for _, f := range report.Findings {
		fix := strings.TrimSuffix(strings.TrimSpace(f.Fix), ";")
		if f.OK || f.Warning || fix == "" {
			continue
		}
		if speaksSQL[kind] {
			fix += ";"
		}
		fixes = append(fixes, fix)
	}
	next := nextAfter(kind, report) + "; the kind's page, docs/issuers/" + kind + ".md, says what is needed there"
	if len(fixes) > 0 {
		if s.output == asTable {
			fmt.Fprintf(s.err, "\nRun this on %s as its administrator, then try again:\n\n%s\n\n", clean(name), cleanLines(strings.Join(slices.Compact(fixes), "\n")))
		}
		next = "run what stands above"
	}
	return &failure{code: exitFailed, kind: client.KindUpstream, word: "target_refused", detail: fmt.Sprintf("target %s was not written: the check failed", name), next: next}
}

// nextAfter is what to do about a check that failed with nothing to run on the target.
func nextAfter(kind string, report wire.TargetReport) string {
	if !slices.ContainsFunc(report.Findings, func(f wire.Finding) bool { return !f.OK && f.Name == "connect" }) {
		return "mend what is marked FAIL above"
	}
	if keyless[kind] {
		return "see that this node reaches the cloud, and knows the CA of endpoints that --set names (--tls-ca-file)"
	}
	return "see that address, account and password are right, and TLS is as the server has it (--tls-ca-file for a CA of your own)"
}

func (s *shell) showTarget(kind, name, group, permit string, report wire.TargetReport, answer wire.ApplyAnswer, waits bool) error {
	roles := []string{}
	for _, r := range report.Roles {
		roles = append(roles, r.Name)
	}
	result := map[string]any{"target": name, "roles": roles, "permit": permit, "findings": report.Findings, "changes": answer.Changes, "dry_run": answer.DryRun}
	if answer.GrantID != "" {
		result["grant_id"] = answer.GrantID
	}
	return s.show(result, func(p *page) {
		verb := "written"
		switch {
		case answer.DryRun:
			verb = "would be written"
		case waits:
			verb = "will be written"
		}
		p.printf("%s %s: %s\n", p.paint(green, verb), "target "+clean(name), "roles "+clean(or(strings.Join(roles, ", "), "none")))
		if _, ours := tries[kind]; ours && len(roles) == 0 {
			p.line("\nWrite a role for it: docs/issuers/" + kind + ".md says what its scopes name.")
		}
		if permit == "" {
			return
		}
		file := strings.ReplaceAll(name, "/", "-") + ".cedar"
		switch {
		case group != "":
			p.line("\nThis permit would let group " + group + " use it. Nothing of it is in force yet; save it and write it with\nmayfly apply -f " + file + ":\n")
		default:
			p.line("\nNobody may use it yet. Save this as " + file + " with the group it is meant for, then\nmayfly apply -f " + file + ":\n")
		}
		p.line(strings.TrimRight(permit, "\n"))
		if len(roles) > 0 {
			p.line("\nThen: " + tryOut(kind, report.Roles[0]))
		}
	})
}

// tries are commands by which somebody sees a role of a kind work; ROLE is its name,
// PLACE and CONTAINER are of the first location of its scope.
// No secret stands in the arguments of a program. Empty: what is requested is
// itself what there is to see.
var tries = map[string]string{
	"postgres": "mayfly exec ROLE -- psql",
	// its clients take user and database as arguments alone
	"mysql": `mayfly exec ROLE -- sh -c 'mysql -u "$MYSQL_USER" "$MYSQL_DATABASE"'`,
	"redis": `mayfly exec ROLE -- sh -c 'redis-cli -h "$REDIS_HOST" -p "$REDIS_PORT" --user "$REDIS_USERNAME"'`,
	// the command-line clients of AMQP would show the password to everybody on the machine
	"rabbitmq": `mayfly exec ROLE -- python3 -c 'import os, pika; print(pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"])))'`,
	"nats":     `mayfly exec ROLE --files nats -- sh -c 'nats --server "$NATS_URL" --creds nats/creds --inbox-prefix "$NATS_INBOX_PREFIX" rtt'`,
	// its client takes a file
	"kubernetes": "mayfly exec ROLE --files kube -- kubectl --kubeconfig kube/kubeconfig get pods",
	"aws":        "mayfly exec ROLE -- aws sts get-caller-identity",
	// a key of one's own never travels
	"ssh":    "mayfly request ROLE --purpose 'trying it out' --public-key ~/.ssh/id_ed25519.pub",
	"github": "mayfly exec ROLE -- gh api /installation/repositories",
	"kv":     "mayfly request ROLE --purpose 'trying it out' -o env",
	"gcp":    "mayfly exec ROLE -- gcloud storage ls PLACE",
	"azure":  "mayfly exec ROLE -- az storage blob list --container-name CONTAINER",
	"vault":  "", // what it is for, only Vault's own operators know
	"jwt":    "",
	// which names, its CSR chooses
	"x509": "mayfly request ROLE --purpose 'trying it out' --csr api.csr",
}

// tryOut is the command by which somebody sees the role work.
func tryOut(kind string, role wire.Object) string {
	place := firstLocation(role)
	container, _, _ := strings.Cut(strings.TrimPrefix(place, "az://"), "/")
	return strings.NewReplacer("ROLE", role.Name, "PLACE", shellQuote(strings.TrimSuffix(place, "*")), "CONTAINER", shellQuote(container)).
		Replace(or(tries[kind], "mayfly request ROLE --purpose 'trying it out'"))
}

// firstLocation is one that a role's scope names; empty where it names none.
func firstLocation(role wire.Object) string {
	var spec struct {
		Scope scope.Scope `json:"scope"`
	}
	if json.Unmarshal(role.Spec, &spec) != nil || len(spec.Scope) == 0 || len(spec.Scope[0].Locations) == 0 {
		return ""
	}
	return spec.Scope[0].Locations[0]
}

// permitFor is the policy that lets a group request and renew the roles.
func permitFor(target, group string, roles []wire.Object) string {
	var names []string
	for _, r := range roles {
		names = append(names, fmt.Sprintf("resource == Role::%s", quoteCedar(r.Name)))
	}
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf("@id(%s)\npermit (principal in Group::%s, action in [Action::\"request\", Action::\"renew\"], resource)\nwhen { (%s) && context.session.bound };\n",
		quoteCedar(target+"-"+group), quoteCedar(group), strings.Join(names, " || "))
}

// quoteCedar makes a Cedar string literal.
func quoteCedar(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}

func (p *page) findings(list []wire.Finding) {
	for _, f := range list {
		mark := p.paint(green, "ok  ")
		switch {
		case !f.OK && f.Warning:
			mark = p.paint(yellow, "warn")
		case !f.OK:
			mark = p.paint(red, "FAIL")
		}
		p.printf("  %s  %s", mark, clean(f.Name))
		if f.Detail != "" {
			p.printf(": %s", clean(f.Detail))
		}
		p.printf("\n")
		if f.Fix != "" && !f.OK {
			for _, line := range strings.Split(strings.TrimRight(f.Fix, "\n"), "\n") {
				p.printf("          %s\n", clean(line))
			}
		}
	}
}

// draft is a target as the flags describe it.
type draft struct {
	spec    map[string]any
	secrets map[string]string
}

// kind is the target's type.
func (d draft) kind() string { kind, _ := d.spec["type"].(string); return kind }

// speaksSQL: what a check tells to run there ends in a semicolon.
var speaksSQL = map[string]bool{"postgres": true, "mysql": true}

// unreached are kinds whose target is the broker itself.
var unreached = map[string]bool{"jwt": true, "x509": true, "ssh": true, "kv": true}

// keyless are kinds whose broker has no secret there, but an identity of its own.
var keyless = map[string]bool{"gcp": true, "azure": true}

// defaultPorts of kinds that are reached over the network.
var defaultPorts = map[string]string{"postgres": "5432", "mysql": "3306", "redis": "6379", "rabbitmq": "15671"}

// defaultDatabases of kinds that have one which is not the server's own.
var defaultDatabases = map[string]string{"postgres": "postgres"}

// drafters are kinds whose place is more than an address.
var drafters = map[string]func(s *shell, c *cli.Context, d *draft, address string) error{
	"aws":        (*shell).draftAWS,
	"github":     (*shell).draftGitHub,
	"kubernetes": (*shell).draftKubernetes,
	"nats":       (*shell).draftNATS,
}

// draftPlace says where the target is and how it is entered.
func (s *shell) draftPlace(c *cli.Context, d *draft, kind, address string) error {
	port, database := defaultPorts[kind]
	own := drafters[kind]
	switch {
	case database:
		return s.draftDatabase(c, d, kind, address, port)
	case own != nil:
		return own(s, c, d, address)
	case keyless[kind]:
		return s.draftKeyless(c, d, kind, address)
	case address != "" && unreached[kind]:
		return usage("%s: a target of kind %s has no address; write mayfly target add %s --name T", clean(address), kind, kind)
	case address != "":
		d.spec["address"] = address
	}
	return nil
}

func (s *shell) draftTarget(c *cli.Context, kind, address string) (draft, error) {
	switch kind {
	case "postgresql":
		kind = "postgres"
	case "mariadb":
		kind = "mysql"
	case "k8s":
		kind = "kubernetes"
	}
	d := draft{spec: map[string]any{"type": kind}}
	if err := s.draftPlace(c, &d, kind, address); err != nil {
		return d, err
	}
	if f := c.String("spec"); f != "" {
		if err := s.draftSpec(f, &d); err != nil {
			return d, err
		}
	}
	if z := c.String("zone"); z != "" {
		d.spec["zone"] = z
	}
	labels := map[string]string{}
	for _, l := range c.StringSlice("label") {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			return d, usage("--label %s: want KEY=VALUE", clean(l))
		}
		labels[k] = v
	}
	if len(labels) > 0 {
		d.spec["labels"] = labels
	}
	for _, pair := range c.StringSlice("set") {
		k, v, ok := strings.Cut(pair, "=")
		if !ok || k == "" {
			return d, usage("--set %s: want KEY=VALUE", clean(pair))
		}
		var parsed any
		if json.Unmarshal([]byte(v), &parsed) != nil {
			parsed = v
		}
		d.spec[k] = parsed
	}
	if err := s.sealDraft(&d); err != nil {
		return d, err
	}
	if kind == "vault" { // how it is entered may stand in what was set
		if err := s.draftVault(c, &d, address); err != nil {
			return d, err
		}
	}
	return d, s.draftSecrets(c, &d)
}

// draftSpec adds the keys of a YAML file, and the secrets that it names as a
// document for apply does.
func (s *shell) draftSpec(file string, d *draft) error {
	data, err := s.document(file)
	if err != nil {
		return failed("no_file", "--spec: %v", err)
	}
	nodes, err := parseDocuments(file, data)
	if err != nil {
		return err
	}
	if len(nodes) != 1 {
		return usage("--spec %s: want one document, the keys of a target's spec", clean(file))
	}
	conv := &converter{at: func(n *yaml.Node) string { return fmt.Sprintf("%s:%d", file, n.Line) }}
	value, err := conv.value(nodes[0], 0)
	if err != nil {
		return err
	}
	keys, ok := value.(map[string]any)
	if !ok || keys["type"] != nil || keys["spec"] != nil {
		return usage("--spec %s: want the keys of a target's spec, without kind, name and type", clean(file))
	}
	o := loaded{Object: wire.Object{Kind: "Target"}, where: file}
	if err := (&loader{shell: s, prompt: true}).resolve(&o, file, keys); err != nil {
		return err
	}
	maps.Copy(d.spec, keys)
	if d.secrets == nil {
		d.secrets = map[string]string{}
	}
	maps.Copy(d.secrets, o.Secrets)
	return nil
}

// draftDatabase fills in where a server is and how the broker logs in to it.
func (s *shell) draftDatabase(c *cli.Context, d *draft, kind, address, port string) error {
	if address == "" {
		return usage("where is it? want mayfly target add %s ADDRESS --name T", kind)
	}
	at, err := parseAddress(kind, address, "")
	if err != nil {
		return err
	}
	mode := or(c.String("tls-mode"), or(at.tls, guessTLS(at.host, c.String("tls-ca-file"))))
	if kind == "rabbitmq" && mode == "disable" {
		port = "15672" // its management API has another one without TLS
	}
	d.spec["address"] = net.JoinHostPort(at.host, or(at.port, port))
	user := or(c.String("username"), or(at.user, "mayfly"))
	d.spec["admin"] = map[string]any{"username": user}
	if kind == "postgres" || kind == "mysql" {
		d.spec["database"] = or(c.String("database"), or(at.database, defaultDatabases[kind]))
		if d.spec["database"] == "" {
			return usage("on which database? give --database D")
		}
	}
	if kind == "rabbitmq" && at.database != "" {
		d.spec["vhost"] = at.database
	}
	tls := map[string]any{"mode": mode}
	if f := c.String("tls-ca-file"); f != "" {
		pem, err := readFile(f, maxDocument)
		if err != nil {
			return failed("no_file", "--tls-ca-file: %v", err)
		}
		tls["ca"] = string(pem)
	}
	d.spec["tls"] = tls
	password := at.password
	if !password.IsZero() {
		s.warnArgv("a password", "give --password-file F, or leave it out to be asked")
	}
	if password.IsZero() || c.IsSet("password-file") {
		if password, err = s.secretFrom(c.String("password-file"), "Password of "+clean(user)+" on "+clean(at.host), "--password-file"); err != nil {
			return err
		}
	}
	d.secrets = map[string]string{"admin_password": password.Reveal()}
	return nil
}

// draftAWS fills in how the broker asks STS: by the access key whose id is
// --username, or with no key at all, as its own identity provider. The address is
// an STS other than the region's own.
func (s *shell) draftAWS(c *cli.Context, d *draft, address string) error {
	if address != "" {
		d.spec["endpoint"] = address
	}
	if f := c.String("tls-ca-file"); f != "" {
		pem, err := readFile(f, maxDocument)
		if err != nil {
			return failed("no_file", "--tls-ca-file: %v", err)
		}
		d.spec["tls"] = map[string]any{"ca": string(pem)}
	}
	key := c.String("username")
	if key == "" {
		d.spec["way"] = "web_identity"
		return nil
	}
	d.spec["way"] = "assume_role"
	d.spec["admin"] = map[string]any{"username": key}
	password, err := s.secretFrom(c.String("password-file"), "Secret access key of "+clean(key), "--password-file")
	d.secrets = map[string]string{"admin_password": password.Reveal()}
	return err
}

// draftKeyless fills in what a target of a cloud has besides its --set keys: the CA
// of endpoints of one's own.
func (s *shell) draftKeyless(c *cli.Context, d *draft, kind, address string) error {
	switch {
	case address != "":
		return usage("%s: a target of kind %s has no address; where the cloud is asked elsewhere, --set names the endpoints", clean(address), kind)
	case c.String("username") != "" || c.String("password-file") != "":
		return usage("a target of kind %s has no account and no password: the broker is an identity provider of its own there", kind)
	}
	if f := c.String("tls-ca-file"); f != "" {
		pem, err := readFile(f, maxDocument)
		if err != nil {
			return failed("no_file", "--tls-ca-file: %v", err)
		}
		d.spec["tls"] = map[string]any{"ca": string(pem)}
	}
	return nil
}

// guessTLS trusts nothing but this machine's own loopback without TLS, where
// most servers have none.
func guessTLS(host, caFile string) string {
	ip := net.ParseIP(host)
	if caFile == "" && (host == "localhost" || ip != nil && ip.IsLoopback()) {
		return "disable"
	}
	return "verify-full"
}

// place is an address taken apart.
type place struct {
	host, port, user, database, tls string
	password                        secret.Text
}

// parseAddress reads host, host:port, host:port/database, or a URL as the
// kind's own clients write it.
func parseAddress(kind, address, port string) (place, error) {
	text := address
	if !strings.Contains(text, "://") {
		text = kind + "://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" {
		return place{}, usage("the address cannot be read; write host:port or %s://user@host:port/database", kind)
	}
	if u.Scheme != kind && (kind != "postgres" || u.Scheme != "postgresql") {
		return place{}, usage("the address is for %s, not for %s", clean(u.Scheme), kind)
	}
	at := place{host: u.Hostname(), port: or(u.Port(), port), user: u.User.Username(), database: strings.Trim(u.Path, "/")}
	if p, ok := u.User.Password(); ok {
		at.password = secret.New(p)
	}
	switch mode := u.Query().Get("sslmode"); mode {
	case "":
	case "verify-full", "verify-ca", "disable":
		at.tls = mode
	default:
		return at, usage("sslmode=%s encrypts without knowing to whom; want verify-full, verify-ca or disable", clean(mode))
	}
	return at, nil
}
