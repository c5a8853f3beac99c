package azure

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/federation"
)

// checkName is the id of a check's identity token.
const checkName = "mayfly-check"

// checkLife is how long the key of a check could sign, in nobody's hands.
const checkLife = time.Minute

// Check implements [issuers.Checker]. It goes the way of a mint, and drops what it gets.
func (is *Issuer) Check(ctx context.Context) ([]issuers.Finding, error) {
	if err := is.Usable(); err != nil {
		return nil, err
	}
	documents := is.Provider.CheckDocuments(ctx, is.HTTP, "Entra", "identity.issuer", false)
	out := []issuers.Finding{documents}
	what := storageScope
	if is.spec.Way == wayToken {
		what = is.spec.Resources[0] + "/.default"
	}
	now := time.Now()
	t, j, err := is.token(ctx, checkName, what, now.Add(federation.CallTimeout))
	if j != nil && j.Dated {
		out = append(out, federation.Skew("Entra", j.Ahead, j.Unsure))
	}
	if err != nil {
		if !federation.IsAnswer(err) {
			return nil, err
		}
		f := federation.Failed(stepToken, err, is.fixFor(err))
		// A target that is not written yet has published no key.
		f.Warning = !documents.OK && issuers.KindOf(err) == issuers.Refused
		return append(out, f), nil
	}
	out = append(out, issuers.Finding{Name: stepToken, OK: true, Detail: "the application takes this target's token"})
	if is.spec.Way == wayToken {
		return out, nil
	}
	f := issuers.Finding{Name: stepKey, OK: true, Detail: "the storage account makes keys for it"}
	if _, err := is.delegate(ctx, t, now.Add(-early), now.Add(checkLife)); err != nil {
		if !federation.IsAnswer(err) {
			return nil, err
		}
		f = federation.Failed(stepKey, err, is.fixFor(err))
	}
	return append(out, f), nil
}

// fixFor is the command that mends what Azure answered, where one does.
func (is *Issuer) fixFor(err error) string {
	switch codeOf(err) {
	case "invalid_client":
		doc, err := json.Marshal(map[string]any{"name": "mayfly", "issuer": is.Provider.Issuer, "subject": is.Provider.Subject, "audiences": []string{is.Provider.Audience}})
		if err != nil {
			return ""
		}
		return fmt.Sprintf("az ad app federated-credential create --id %s --parameters %s", is.spec.Client, federation.Quote(string(doc)))
	case "AuthorizationPermissionMismatch":
		return fmt.Sprintf("az role assignment create --assignee %s --role 'Storage Blob Delegator' --scope \"$(az storage account show --name %s --query id --output tsv)\"", is.spec.Client, is.spec.Account)
	}
	return ""
}
