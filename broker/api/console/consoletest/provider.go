package consoletest

import (
	"context"
	"slices"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/secret"
)

// Provider is an AuthMethod by which people sign in, with its client's secret.
type Provider struct {
	Name, Secret string
	Spec         any
}

// SignInMethods implements console.Engine.
func (e *Engine) SignInMethods(context.Context) (names []string, err error) {
	for _, p := range e.Providers {
		names = append(names, p.Name)
	}
	return names, nil
}

func (e *Engine) provider(name string) (ledger.Object, secret.Text, error) {
	i := slices.IndexFunc(e.Providers, func(p Provider) bool { return p.Name == name })
	if i < 0 {
		return ledger.Object{}, secret.Text{}, fault.New(fault.Unauthenticated, "method_unknown", "There is no such way to sign in.")
	}
	p := e.Providers[i]
	return ledger.Object{Kind: ledger.KindAuthMethod, Name: name, Version: 1, Spec: raw(p.Spec)}, secret.New(p.Secret), nil
}

// BeginSignIn implements console.Engine.
func (e *Engine) BeginSignIn(ctx context.Context, in broker.SignInRequest) (broker.SignInStart, error) {
	o, clientSecret, err := e.provider(in.Method)
	if err != nil {
		return broker.SignInStart{}, err
	}
	return e.SignIn.Begin(ctx, o, clientSecret, in)
}

// FinishSignIn implements console.Engine.
func (e *Engine) FinishSignIn(ctx context.Context, in broker.SignInAnswer) (wire.LoginAnswer, string, error) {
	who, to, err := e.SignIn.Finish(ctx, in, e.provider)
	if err != nil {
		return wire.LoginAnswer{}, "", err
	}
	return wire.LoginAnswer{SessionToken: e.Open(who.Principal, "cookie"), Principal: who.Principal, ExpiresAt: e.Clock().Add(time.Hour)}, to, nil
}
