package azuretest

import (
	"context"
	"errors"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
)

// World is an Azurite, with some blobs in it, and an Entra, under one authority.
type World struct {
	Entra *Entra
	Blobs *Azurite
	CAPEM string
	stop  func()
}

// NewWorld starts both.
func NewWorld(ctx context.Context) (*World, error) {
	ca, err := servertest.NewAuthority()
	if err != nil {
		return nil, err
	}
	w := &World{CAPEM: ca.PEM}
	if w.Entra, w.stop, err = NewEntra(ca); err != nil {
		return nil, err
	}
	if w.Blobs, err = Run(ctx, ca, func() string { return w.Entra.Token("https://storage.azure.com", "") }); err != nil {
		w.stop()
		return nil, err
	}
	for _, container := range []string{"orders", "other"} {
		err = errors.Join(err, w.Blobs.Put(ctx, container, "restype=container", nil))
		for _, blob := range []string{"2026/a.txt", "2026/b.txt", "2025/a.txt"} {
			err = errors.Join(err, w.Blobs.Put(ctx, container+"/"+blob, "", []byte("content")))
		}
	}
	if err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// Close ends both.
func (w *World) Close() {
	_ = w.Blobs.Close() // the test is over, and its directory a temporary one
	w.stop()
}

// Nobody returns an address on which nobody listens.
func Nobody() (string, error) { return servertest.Address() }
