package awstest

import (
	"fmt"
	"net/http"
	"net/url"
	"sync"
)

// StandIn plays STS where MinIO has no such action, or never gives such an
// answer. Its answers have the form that the STS API reference shows.
type StandIn struct {
	URL string

	mu      sync.Mutex
	asked   []Asked
	answers map[string]Answer
}

// Asked is one request that came.
type Asked struct {
	Form   url.Values
	Header http.Header
}

// Answer is what an action is answered with; the zero value is success.
type Answer struct {
	Status int
	Body   string
	// Do, where set, answers by itself.
	Do http.HandlerFunc
}

// Refusal is an error as STS writes it.
func Refusal(status int, code, message string) Answer {
	return Answer{Status: status, Body: fmt.Sprintf(`<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>%s</Code><Message>%s</Message></Error>`+
		`<RequestId>c6104cbe-af31-11e0-8154-cbc7ccf896c7</RequestId></ErrorResponse>`, code, message)}
}

// credentials are those of the STS API reference's examples.
const credentials = `<Credentials><AccessKeyId>ASIAIOSFODNN7EXAMPLE</AccessKeyId><SecretAccessKey>wJalrXUtnFEMI/K7MDENG/bPxRfiCYzEXAMPLEKEY</SecretAccessKey>` +
	`<SessionToken>AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQW</SessionToken><Expiration>2099-07-15T23:28:33.359Z</Expiration></Credentials>`

// whole are STS's answers by action.
var whole = map[string]string{
	"AssumeRole":                `<AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/demo/TestAR</Arn><AssumedRoleId>ARO123EXAMPLE123:TestAR</AssumedRoleId></AssumedRoleUser>` + credentials + `<PackedPolicySize>6</PackedPolicySize>`,
	"AssumeRoleWithWebIdentity": `<AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/demo/TestAR</Arn><AssumedRoleId>ARO123EXAMPLE123:TestAR</AssumedRoleId></AssumedRoleUser>` + credentials + `<Audience>sts.amazonaws.com</Audience>`,
	"GetFederationToken":        credentials + `<FederatedUser><Arn>arn:aws:sts::123456789012:federated-user/Jean</Arn><FederatedUserId>123456789012:Jean</FederatedUserId></FederatedUser><PackedPolicySize>4</PackedPolicySize>`,
	"GetCallerIdentity":         `<Arn>arn:aws:iam::123456789012:user/mayfly</Arn><UserId>AIDACKCEVSQ6C2EXAMPLE</UserId><Account>123456789012</Account>`,
}

// NewStandIn serves one under a certificate of ca's.
func NewStandIn(ca *CA) (s *StandIn, closer func(), err error) {
	s = &StandIn{answers: map[string]Answer{}}
	s.URL, closer, err = ca.Serve(s)
	return s, closer, err
}

// Answer sets what an action is answered with from now on.
func (s *StandIn) Answer(action string, a Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[action] = a
}

// Asked returns the requests that came so far.
func (s *StandIn) Asked() []Asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Asked{}, s.asked...)
}

// ServeHTTP implements [http.Handler].
func (s *StandIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	action := r.PostForm.Get("Action")
	s.mu.Lock()
	s.asked = append(s.asked, Asked{r.PostForm, r.Header.Clone()})
	a := s.answers[action]
	s.mu.Unlock()
	switch {
	case a.Do != nil:
		a.Do(w, r)
		return
	case a.Status == 0 && a.Body == "":
		a.Status = http.StatusOK
		a.Body = fmt.Sprintf(`<%sResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><%sResult>%s</%sResult><ResponseMetadata><RequestId>c6104cbe-af31-11e0-8154-cbc7ccf896c7</RequestId></ResponseMetadata></%sResponse>`,
			action, action, whole[action], action, action)
	}
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(a.Status)
	_, _ = w.Write([]byte(a.Body))
}
