package main

import (
	"maps"

	"github.com/mayfly-broker/mayfly/client/wire"
)

// sealDraft reads what {from_file: F} in a --set names, as apply does in a document,
// and moves it from the spec into the target's secrets. Files are relative to the
// directory that the command runs in.
func (s *shell) sealDraft(d *draft) error {
	o := &loaded{Object: wire.Object{Kind: "Target", Name: "of --set"}, where: "--set"}
	if err := (&loader{shell: s, prompt: true}).walk(o, "-", "", d.spec); err != nil {
		return err
	}
	if d.secrets == nil {
		d.secrets = o.Secrets
	}
	maps.Copy(d.secrets, o.Secrets)
	return nil
}
