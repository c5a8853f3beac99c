package console

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/secret"
)

type signInBody struct {
	To      string
	Methods []string // providers to sign in by
}

// door is the body of the sign-in page. It opens by a passkey even where the
// providers cannot be listed.
func (s *Console) door(x *exchange, to string) signInBody {
	methods, err := x.engine.SignInMethods(x.r.Context())
	if err != nil {
		s.log.Warn("the sign-in page lists no providers", "error", err)
	}
	return signInBody{To: localPath(to), Methods: methods}
}

func (s *Console) signIn(x *exchange) error {
	to := localPath(x.query("to"))
	if x.signedIn() {
		return x.see(to)
	}
	return x.show("signin", page{Title: "Sign in", Nav: "signin", Body: s.door(x, to), Notice: signInNotices[x.query("done")]})
}

var signInNotices = map[string]string{"out": "You have signed out.", "ended": "Your session has ended."}

// beginSignIn gives the page's script a challenge.
func (s *Console) beginSignIn(x *exchange) error {
	options, err := x.engine.PasskeyLogin(x.r.Context())
	if err != nil {
		return err
	}
	writeJSON(x.w, http.StatusOK, options)
	return nil
}

func (s *Console) finishSignIn(x *exchange) error {
	in, err := x.engine.LoginPasskey(x.r.Context(), broker.PasskeyLogin{Response: json.RawMessage(x.form("credential")), Address: x.caller.Address})
	if err != nil {
		return s.signInAgain(x, err)
	}
	return s.welcome(x, in, localPath(x.form("to")))
}

// enrol opens a session with a one-time token, and leads to where a passkey is
// made, so that the next time needs no token.
func (s *Console) enrol(x *exchange) error {
	token := strings.TrimSpace(x.form("token"))
	if token == "" {
		return s.signInAgain(x, fault.New(fault.Invalid, "token_missing", "Paste the enrolment token that your administrator has sent you."))
	}
	in, err := x.engine.LoginEnrolled(x.r.Context(), secret.New(token), x.caller.Address)
	if err != nil {
		return s.signInAgain(x, err)
	}
	return s.welcome(x, in, "/keys?done=enrolled")
}

func (s *Console) welcome(x *exchange, in wire.LoginAnswer, to string) error {
	setSession(x.w, in)
	return x.see(to)
}

// signInAgain shows the sign-in page with what went wrong.
func (s *Console) signInAgain(x *exchange, err error) error {
	e := fault.As(err)
	if e.Kind == fault.Internal {
		return err
	}
	s.render(x.w, x.r, x.visitor, e.Kind.Status(), "signin", page{Title: "Sign in", Nav: "signin", Problem: e, Body: s.door(x, x.form("to"))})
	return nil
}

func (s *Console) signOut(x *exchange) error {
	if err := x.engine.Logout(x.r.Context(), x.caller); err != nil {
		return err
	}
	dropSession(x.w)
	return x.see("/signin?done=out")
}

// keysBody is the page of the caller's own keys.
type keysBody struct {
	Keys     []wire.Key
	Passkeys []broker.Passkey
	First    bool // just enrolled: a passkey is what to make now
}

func (s *Console) listKeys(x *exchange) error {
	ctx := x.r.Context()
	var b keysBody
	var err error
	if b.Keys, err = x.engine.Keys(ctx, x.caller, ""); err != nil {
		return err
	}
	if b.Passkeys, err = x.engine.Passkeys(ctx, x.caller); err != nil {
		return err
	}
	b.First = len(b.Passkeys) == 0
	return x.show("keys", page{Title: "Your keys", Nav: "keys", Body: b, Notice: notices[x.query("done")]})
}

// beginKey gives the page's script the options of a new passkey.
func (s *Console) beginKey(x *exchange) error {
	options, err := x.engine.NewPasskey(x.r.Context(), x.caller)
	if err != nil {
		return err
	}
	writeJSON(x.w, http.StatusOK, options)
	return nil
}

// offerKey takes the new passkey and answers with what must sign it.
func (s *Console) offerKey(x *exchange) error {
	offer, err := x.engine.OfferPasskey(x.r.Context(), x.caller, json.RawMessage(x.form("credential")))
	if err != nil {
		return err
	}
	writeJSON(x.w, http.StatusOK, offer)
	return nil
}

func (s *Console) addKey(x *exchange) error {
	proof, err := x.signature("proof_")
	if err != nil {
		return err
	}
	var vouch *wire.Signature
	if x.form("vouch_key") != "" || x.form("vouch_jws") != "" {
		sig, err := x.signature("vouch_")
		if err != nil {
			return err
		}
		vouch = &sig
	}
	key, err := x.engine.AddPasskey(x.r.Context(), x.caller, x.form("ticket"), &proof, vouch)
	if err != nil {
		return err
	}
	if key.GrantID != "" {
		return x.see("/grants/" + escapePath(key.GrantID) + "?done=asked")
	}
	return x.see("/keys?done=key")
}

func (s *Console) removeKey(x *exchange) error {
	if err := x.engine.RemoveKey(x.r.Context(), x.caller, x.me.Principal, x.form("thumbprint")); err != nil {
		return err
	}
	return x.see("/keys?done=removed")
}
