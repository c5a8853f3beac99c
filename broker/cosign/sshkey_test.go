package cosign_test

import (
	"encoding/base64"
	"reflect"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/cosign/cosigntest"
)

func TestSSHKeysReadBackAsTheyWereWritten(t *testing.T) {
	seen := 0
	for _, variant := range cosigntest.Variants() {
		p := cosigntest.New(variant)
		line, err := p.Key().SSH()
		if p.Key().Kind != cosign.KindSSH {
			if err == nil {
				t.Errorf("%s has an SSH form: %s", variant, line)
			}
			continue
		}
		seen++
		if want := base64.StdEncoding.EncodeToString(p.SSHPublic()); err != nil || !strings.HasSuffix(line, " "+want) {
			t.Errorf("%s: %q, %v", variant, line, err)
		}
		got, err := cosign.ParseSSH(line + " ann@laptop")
		if err != nil || !reflect.DeepEqual(got, p.Key()) {
			t.Errorf("%s: %+v, %v; want %+v", variant, got, err, p.Key())
		}
	}
	if seen < 4 {
		t.Fatalf("only %d kinds of SSH keys", seen)
	}
}

func TestSSHKeysThatAreRefused(t *testing.T) {
	good, err := cosigntest.New(cosign.KindSSH).Key().SSH()
	if err != nil {
		t.Fatal(err)
	}
	kind, body, _ := strings.Cut(good, " ")
	for name, line := range map[string]string{
		"empty":         "",
		"no key":        kind,
		"RSA":           "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQ==",
		"other type":    "ecdsa-sha2-nistp256 " + body,
		"cut":           kind + " " + body[:len(body)-8],
		"with options":  `no-pty ` + good,
		"not base64":    kind + " !!!!",
		"much too long": good + " " + strings.Repeat("x", 3000),
	} {
		if k, err := cosign.ParseSSH(line); err == nil {
			t.Errorf("%s: %+v", name, k)
		}
	}
}
