package ledger_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/scope"
)

// samples returns every command type with every member set, so that a golden
// file shows the whole shape. New bodies are added by hand: the test below
// finds a type that is missing.
func samples() map[string]ledger.Body {
	out := map[string]ledger.Body{}
	for _, b := range []ledger.Body{
		&ledger.Genesis{}, &ledger.ChangeObjects{}, &ledger.IssueEnrolment{}, &ledger.AddKey{}, &ledger.RemoveKey{}, &ledger.OpenSession{},
		&ledger.EndSession{}, &ledger.StartTask{}, &ledger.HeartbeatTask{}, &ledger.EndTask{}, &ledger.RecordDecision{}, &ledger.OpenLease{},
		&ledger.RemintLease{}, &ledger.ExtendLease{}, &ledger.EndLeases{}, &ledger.RecordWithdrawals{}, &ledger.ForceEnd{}, &ledger.Freeze{},
		&ledger.Release{}, &ledger.IssueJoinToken{}, &ledger.AdmitNode{}, &ledger.Sweep{},
		&ledger.RequestGrant{}, &ledger.ApproveGrant{}, &ledger.EndGrant{}, &ledger.ReviewGrant{}, &ledger.MakeChange{},
		&ledger.RecordDelivery{}, &ledger.RecordDelivery{}, &ledger.WantRotation{}, &ledger.ScheduleRotation{}, &ledger.BeginRotation{}, &ledger.FailRotation{},
		&ledger.FinishRotation{}, &ledger.TurnKeys{}, &ledger.TurnCluster{},
	} {
		fill(reflect.ValueOf(b).Elem(), "")
		out[b.Type()] = b
	}
	return out
}

var (
	rawType   = reflect.TypeFor[json.RawMessage]()
	tableType = reflect.TypeFor[scope.Table]()
)

// fill sets a value and all below it to something that is not zero.
func fill(v reflect.Value, name string) {
	switch {
	case v.Type() == rawType:
		v.Set(reflect.ValueOf(json.RawMessage(`{"raw":"` + name + `"}`)))
		return
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8:
		v.SetBytes([]byte(name))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(strings.ToLower(name))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(len(name)) + 1000)
	case reflect.Uint64:
		v.SetUint(uint64(len(name)) + 1000)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), name)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), name)
	case reflect.Map:
		m, val := reflect.MakeMap(v.Type()), reflect.New(v.Type().Elem()).Elem()
		fill(val, name)
		m.SetMapIndex(reflect.ValueOf("key"), val)
		v.Set(m)
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i).Name; v.Type() == tableType && f == "Rows" || f == "Override" || f == "Undone" {
				continue // newer than the files: TestHazard2LaterMembersHaveTheirOwnGoldenShape
			}
			fill(v.Field(i), v.Type().Field(i).Name)
		}
	default:
		panic("fill: a member of kind " + v.Kind().String() + " is new; teach fill about it")
	}
}

func sampleHeader() ledger.Header {
	var h ledger.Header
	fill(reflect.ValueOf(&h).Elem(), "")
	return h
}

var sampleSecret = ledger.Secret{Name: "Target/db/password", Salt: []byte("0123456789abcdef"), Value: []byte("not a real one")}

func goldenFile(typ string) string { return filepath.Join("testdata", "commands", typ+".txt") }

// publicOf takes a command's public part out of its bytes.
func publicOf(raw []byte) []byte {
	n, used := binary.Uvarint(raw[1:])
	return raw[1+used : 1+used+int(n)]
}

// TestHazard2EveryCommandHasItsGoldenShape: a change of any shape that has been
// shipped shows here, before a rolling upgrade makes replicas differ.
func TestHazard2EveryCommandHasItsGoldenShape(t *testing.T) {
	all := samples()
	for _, typ := range ledger.Types() {
		t.Run(typ, func(t *testing.T) {
			body, ok := all[typ]
			if !ok {
				t.Fatalf("command type %s has no sample: add it to samples() and run with -rewrite", typ)
			}
			raw, err := ledger.Encode(sampleHeader(), body, sampleSecret)
			if err != nil {
				t.Fatal(err)
			}
			public := publicOf(raw)
			if *rewrite {
				if err := os.WriteFile(goldenFile(typ), append(bytes.Clone(public), '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			golden, err := os.ReadFile(goldenFile(typ))
			if err != nil {
				t.Fatalf("%v; run: go test ./broker/ledger -run Golden -rewrite", err)
			}
			golden = bytes.TrimSuffix(golden, []byte{'\n'})
			if !bytes.Equal(golden, public) {
				t.Errorf("%s encodes to another shape than the golden one:\n%s\n%s", typ, public, golden)
			}
			d, err := ledger.DecodePublic(golden)
			if err != nil {
				t.Fatalf("the golden %s does not decode: %v", typ, err)
			}
			if got := (ledger.Entry{Public: golden}).Type(); got != typ {
				t.Errorf("the golden %s is taken for %q", typ, got)
			}
			if !reflect.DeepEqual(d.Body, body) {
				t.Errorf("the golden %s decodes to\n%+v, wanted\n%+v", typ, d.Body, body)
			}
		})
	}
}

// TestHazard2LaterMembersHaveTheirOwnGoldenShape: what came after a command was
// shipped is left out where it is not set, so that the files above stay as they
// were, and stands in a file of its own where it is.
func TestHazard2LaterMembersHaveTheirOwnGoldenShape(t *testing.T) {
	task := samples()["start_task"].(*ledger.StartTask)
	task.Task.Scope[0].Tables[0].Rows = []scope.Condition{{Column: "region", Op: "in", Values: []string{"eu", "us"}}}
	objects := samples()["change_objects"].(*ledger.ChangeObjects)
	objects.Changes[0].Override = true
	grant := samples()["request_grant"].(*ledger.RequestGrant)
	grant.Change.Objects[0].Override = true
	undone := samples()["fail_rotation"].(*ledger.FailRotation)
	undone.Undone = true
	for name, body := range map[string]ledger.Body{"start_task.rows": task, "change_objects.override": objects, "request_grant.override": grant, "fail_rotation.undone": undone} {
		raw, err := ledger.Encode(sampleHeader(), body, sampleSecret)
		if err != nil {
			t.Fatal(err)
		}
		public, file := publicOf(raw), goldenFile(name)
		if *rewrite {
			if err := os.WriteFile(file, append(bytes.Clone(public), '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		golden, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		golden = bytes.TrimSuffix(golden, []byte{'\n'})
		d, err := ledger.DecodePublic(golden)
		if err != nil || !bytes.Equal(golden, public) || !reflect.DeepEqual(d.Body, body) {
			t.Errorf("%v\n%s\n%s", err, public, golden)
		}
	}
}

// TestGoldenFilesAllDecode: a file whose type is gone is a shape that old
// entries still have.
func TestGoldenFilesAllDecode(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "commands", "*.txt"))
	if err != nil || len(files) < len(ledger.Types()) {
		t.Fatalf("%d golden files for %d types (%v)", len(files), len(ledger.Types()), err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ledger.DecodePublic(bytes.TrimSuffix(b, []byte{'\n'})); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
}

// altered decodes, changes and encodes the lines of a golden file.
func altered(t *testing.T, golden []byte, change func(map[string]any)) []byte {
	t.Helper()
	lines := bytes.Split(bytes.TrimSuffix(golden, []byte{'\n'}), []byte{'\n'})
	m := map[string]any{}
	for i, name := range []string{"head", "body"} {
		var line map[string]any
		if err := json.Unmarshal(lines[i], &line); err != nil {
			t.Fatal(err)
		}
		m[name] = line
	}
	change(m)
	lines[0], lines[1] = mustEncode(t, m["head"]), mustEncode(t, m["body"])
	return bytes.Join(lines, []byte{'\n'})
}

func mustEncode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestHazard2WhatIsUnknownDoesNotDecode: a replica that ignored a member would
// diverge from one that knows it.
func TestHazard2WhatIsUnknownDoesNotDecode(t *testing.T) {
	for _, typ := range ledger.Types() {
		golden, err := os.ReadFile(goldenFile(typ))
		if err != nil {
			t.Fatal(err)
		}
		for name, change := range map[string]func(map[string]any){
			"member of the header": func(m map[string]any) { m["head"].(map[string]any)["new"] = 1 },
			"member of the actor":  func(m map[string]any) { m["head"].(map[string]any)["actor"].(map[string]any)["new"] = 1 },
			"member of the body":   func(m map[string]any) { m["body"].(map[string]any)["new"] = 1 },
			"version":              func(m map[string]any) { m["head"].(map[string]any)["v"] = 2 },
			"no version":           func(m map[string]any) { delete(m["head"].(map[string]any), "v") },
			"type":                 func(m map[string]any) { m["head"].(map[string]any)["type"] = "never_heard_of" },
			"body that is a list":  func(m map[string]any) { m["body"] = []any{} },
		} {
			if _, err := ledger.DecodePublic(altered(t, golden, change)); err == nil {
				t.Errorf("%s with an unknown %s decodes", typ, name)
			}
		}
	}
}

// TestHazard2UndecodableCommandStopsTheNode: an entry is never skipped.
func TestHazard2UndecodableCommandStopsTheNode(t *testing.T) {
	b := newBook(t)
	before := b.mem.Dump()
	good, err := ledger.Encode(b.header(app), &ledger.Sweep{Max: 1})
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{
		"empty": {}, "one byte": {1}, "version": append([]byte{9}, good[1:]...), "cut short": good[:len(good)-3],
		"trailing": append(bytes.Clone(good), 'x'), "length": {1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, '{'},
		"too large": append(bytes.Clone(good), make([]byte, ledger.MaxCommandBytes)...),
	} {
		if _, err := ledger.Apply(b.mem, raw); err == nil {
			t.Errorf("%s: applied", name)
		}
	}
	if b.mem.Dump() != before {
		t.Error("the state has changed")
	}
}

// TestHazard25SecretsEnterTheLeafAsCommitments.
func TestHazard25SecretsEnterTheLeafAsCommitments(t *testing.T) {
	b := newBook(t)
	h := b.header(admin)
	cmd := &ledger.ChangeObjects{Changes: []ledger.ObjectChange{{Kind: "Target", Name: "db", Spec: rawJSON(`{"type":"memory","zone":"eu"}`), AnyVersion: true, Secrets: []string{sampleSecret.Name}}}}
	if res := b.apply(h, cmd, sampleSecret); !res.OK() {
		t.Fatal(res)
	}
	if got := b.q().Secret("Target", "db", "password"); !bytes.Equal(got, sampleSecret.Value) {
		t.Errorf("the secret is kept as %q", got)
	}
	e, ok := b.q().Entry(b.q().Size() - 1)
	if !ok || bytes.Contains(e.Public, sampleSecret.Value) || bytes.Contains(e.Public, sampleSecret.Salt) || !bytes.Contains(e.Public, []byte("commitments")) {
		t.Errorf("the leaf is %s", e.Public)
	}
	raw, err := ledger.Encode(h, cmd, sampleSecret)
	if err != nil {
		t.Fatal(err)
	}
	forged := bytes.Replace(raw, []byte("bm90IGEgcmVhbCBvbmU="), []byte("bm90IGEgcmVhbCBvbmF="), 1)
	if bytes.Equal(forged, raw) {
		t.Fatal("nothing was forged")
	}
	if _, err := ledger.Apply(b.mem, forged); err == nil {
		t.Error("a secret that does not match its commitment was applied")
	}
	if _, err := ledger.Encode(h, cmd, ledger.Secret{Name: "x", Salt: []byte("short"), Value: []byte("v")}); err == nil {
		t.Error("a short salt was taken")
	}
}
