package github

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
)

// skew is how far clocks may be apart before JWTs are refused some day.
const skew = 30 * time.Second

// Check implements [issuers.Checker]: whether GitHub knows the App, where it is
// installed, and what it may do there. No token is made.
func (is *Issuer) Check(ctx context.Context) ([]issuers.Finding, error) {
	jwt, err := is.app.token(time.Now(), time.Now().Add(longestJWT))
	if err != nil {
		return nil, err
	}
	r, err := is.client.do(ctx, asApp, jwt, http.MethodGet, "/app", nil)
	if err != nil {
		return nil, err
	}
	if r.status != http.StatusOK {
		return []issuers.Finding{{Name: "app", Detail: r.refusal("GET /app").Detail, Fix: "in the App's settings, see that id and private key belong together; make a new key there if in doubt"}}, nil
	}
	var a struct {
		ID   int64  `json:"id"`
		Slug string `json:"slug"`
	}
	if err := json.Unmarshal(r.body, &a); err != nil || a.ID <= 0 {
		return []issuers.Finding{{Name: "app", Detail: "the answer is not GitHub's; is api the address of its REST API, as in https://github.example/api/v3?"}}, nil
	}
	out := []issuers.Finding{{Name: "app", OK: true, Detail: oneLine(a.Slug) + ", id " + strconv.FormatInt(a.ID, 10)}}
	if r.ahead.Abs() > skew {
		out = append(out, issuers.Finding{Name: "clock", Warning: true, Detail: fmt.Sprintf("GitHub's clock differs by %s; JWTs that end late or begin early are refused", r.ahead.Round(time.Second))})
	}
	in, _, err := is.lookUp(ctx, jwt)
	if err != nil {
		return append(out, issuers.Finding{Name: "installation", Detail: err.Error(), Fix: "install the App on " + is.spec.Owner + ", from its settings page"}), nil
	}
	return append(out, is.installationFindings(in)...), nil
}

func (is *Issuer) installationFindings(in installation) []issuers.Finding {
	f := issuers.Finding{Name: "installation", OK: true, Detail: fmt.Sprintf("id %d on %s, with %s", in.ID, oneLine(in.Account.Login), oneLine(words(in.Permissions)))}
	if in.SuspendedAt != nil {
		f.OK, f.Detail = false, "suspended since "+in.SuspendedAt.UTC().Format(time.RFC3339)
	}
	out := []issuers.Finding{f}
	if in.RepositorySelection == "all" {
		out = append(out, issuers.Finding{Name: "repositories", Warning: true,
			Detail: "the App is installed on all repositories of the owner; whoever has its key has all of them", Fix: "choose \"Only select repositories\" in the installation's settings"})
	}
	for name, level := range in.Permissions {
		if _, ours := permissions[name]; !ours {
			out = append(out, issuers.Finding{Name: "permission " + oneLine(name), Warning: true, Detail: "no scope can name " + oneLine(name+":"+level) + "; take it from the App if nobody else needs it"})
		}
	}
	slices.SortFunc(out[1:], func(a, b issuers.Finding) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	if order[in.Permissions["contents"]] == 0 {
		out = append(out, issuers.Finding{Name: "permission contents", Warning: true, Detail: "the App may not read contents; the proposed roles need it", Fix: "give the App the repository permission Contents, and accept it in the installation"})
	}
	return out
}
