package api

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// addOpen registers what needs no session and is no JSON operation: health,
// metrics, the documents that others fetch, and the answer to paths that are
// not there.
func (f *surface) addOpen() {
	s := f.server
	plain := func(path string, place place, do func(w http.ResponseWriter, r *http.Request) error) {
		rt := &route{method: http.MethodGet, path: path, access: needNothing, place: place}
		f.mux.HandleFunc(rt.pattern(), func(w http.ResponseWriter, r *http.Request) {
			s.serve(rt, w, r, func(w http.ResponseWriter, r *http.Request) {
				if err := do(w, r); err != nil {
					s.fail(w, r, err)
				}
			})
		})
	}
	plain("/healthz", hereOnly, s.healthz)
	plain("/readyz", hereOnly, s.readyz)
	plain("/metrics", hereOnly, func(w http.ResponseWriter, r *http.Request) error {
		s.metrics.handler().ServeHTTP(w, r)
		return nil
	})
	plain(prefix+"/openapi.json", hereOnly, func(w http.ResponseWriter, _ *http.Request) error {
		return public(w, "application/openapi+json", s.openAPI)
	})
	plain("/.well-known/openid-configuration", hereOnly, s.discovery)
	plain("/.well-known/oauth-authorization-server", hereOnly, s.oauthDiscovery)
	plain("/oauth/jwks", anywhere, s.jwks)
	plain(prefix+"/public/targets/{name}/{document}", anywhere, s.targetDocument)
	// A target that is an OpenID provider is one at this URL; its discovery document
	// stands where OpenID Connect Discovery 1.0 §4 puts it.
	plain(prefix+"/public/targets/{name}/.well-known/{document}", anywhere, s.targetDocument)
	f.mux.HandleFunc("/", s.nowhere)
}

// public answers with a document that everybody may keep for a while.
func public(w http.ResponseWriter, media string, body []byte) error {
	w.Header().Set("Content-Type", media)
	w.Header().Set("Cache-Control", "public, max-age=60")
	_, _ = w.Write(body)
	return nil
}

// healthz says that the process is up. A sealed node is: to restart it would
// only seal it again.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) error {
	st := s.node.Status()
	return writeJSON(w, map[string]any{"status": "ok", "initialised": st.Initialised, "sealed": st.Sealed, "role": st.Role})
}

// readyz says whether this node may be sent requests.
func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) error {
	if s.draining.Load() {
		return fault.New(fault.Unavailable, CodeDraining, "This node is shutting down.")
	}
	broker, err := s.cfg.Engine()
	if err != nil {
		return err
	}
	if err := broker.Ready(); err != nil {
		return err
	}
	return writeJSON(w, map[string]any{"status": "ready"})
}

// discovery is the OpenID Provider's metadata (OpenID Connect Discovery 1.0
// §3), as far as verifiers of issued tokens need it, and the OAuth endpoints'.
// There is no authorization endpoint; libraries insist on its members.
func (s *Server) discovery(w http.ResponseWriter, _ *http.Request) error {
	meta := s.oauthMetadata()
	meta["response_types_supported"] = []string{"id_token"}
	meta["subject_types_supported"] = []string{"public"}
	meta["id_token_signing_alg_values_supported"] = []string{"ES256", "EdDSA"}
	body, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	return public(w, mediaJSON, body)
}

func (s *Server) jwks(w http.ResponseWriter, r *http.Request) error {
	body, err := callOf(r.Context()).broker.Publish(r.Context(), "jwks")
	if err != nil {
		return err
	}
	return public(w, "application/jwk-set+json", body)
}

// targetDocument is what a target's verifiers fetch. Nobody may keep it: an old
// revocation list is one that lacks entries.
func (s *Server) targetDocument(w http.ResponseWriter, r *http.Request) error {
	body, err := callOf(r.Context()).broker.PublishTarget(r.Context(), r.PathValue("name"), r.PathValue("document"))
	if err != nil {
		return err
	}
	media := "application/octet-stream"
	if strings.HasSuffix(r.URL.Path, ".json") || strings.HasSuffix(r.URL.Path, "/.well-known/openid-configuration") {
		media = mediaJSON
	}
	w.Header().Set("Content-Type", media)
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(body)
	return nil
}

// nowhere answers for paths and methods that no route has.
func (s *Server) nowhere(w http.ResponseWriter, r *http.Request) {
	if ok, wait := s.throttle.open.take(callOf(r.Context()).address); !ok {
		s.fail(w, r, tooFast(wait))
		return
	}
	mux := s.routes
	var allowed []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
		probe := &http.Request{Method: m, URL: r.URL, Host: r.Host}
		if _, pattern := mux.Handler(probe); pattern != "/" && pattern != "" {
			allowed = append(allowed, m)
		}
	}
	if len(allowed) == 0 {
		s.fail(w, r, fault.New(fault.NotFound, CodeNoRoute, "There is nothing at this path. The API is described at %s/openapi.json.", prefix))
		return
	}
	e := refuse(http.StatusMethodNotAllowed, fault.Invalid, CodeMethod, "This path takes %s.", strings.Join(allowed, ", "))
	e.header.Set("Allow", strings.Join(allowed, ", "))
	s.fail(w, r, e)
}

func writeJSON(w http.ResponseWriter, v any) error {
	// Without escapes for HTML: a grant's document goes out as the bytes that are
	// under its hash.
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	w.Header().Set("Content-Type", mediaJSON)
	_, _ = w.Write(body.Bytes())
	return nil
}
