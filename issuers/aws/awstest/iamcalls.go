package awstest

import (
	"cmp"
	"crypto/rand"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// call is one action: which members it takes, by the API reference, and what it does.
type call struct {
	required, optional string
	lists              string // members that are lists of structures or strings
	result             bool
	do                 func(s *IAM, who caller, f url.Values) (string, *fault)
}

// calls are the actions of IAM (2010-05-08) and STS (2011-06-15) that there are.
var calls = map[string]call{
	"iam:CreateUser":        {"UserName", "Path PermissionsBoundary", "Tags", true, (*IAM).createUser},
	"iam:GetUser":           {"UserName", "", "", true, (*IAM).getUser},
	"iam:DeleteUser":        {"UserName", "", "", false, (*IAM).deleteUser},
	"iam:ListUsers":         {"", "PathPrefix Marker MaxItems", "", true, (*IAM).listUsers},
	"iam:TagUser":           {"UserName", "", "Tags", false, (*IAM).tagUser},
	"iam:UntagUser":         {"UserName", "", "TagKeys", false, (*IAM).untagUser},
	"iam:PutUserPolicy":     {"UserName PolicyName PolicyDocument", "", "", false, (*IAM).putUserPolicy},
	"iam:GetUserPolicy":     {"UserName PolicyName", "", "", true, (*IAM).getUserPolicy},
	"iam:ListUserPolicies":  {"UserName", "Marker MaxItems", "", true, (*IAM).listUserPolicies},
	"iam:DeleteUserPolicy":  {"UserName PolicyName", "", "", false, (*IAM).deleteUserPolicy},
	"iam:CreateAccessKey":   {"UserName", "", "", true, (*IAM).createAccessKey},
	"iam:ListAccessKeys":    {"UserName", "Marker MaxItems", "", true, (*IAM).listAccessKeys},
	"iam:UpdateAccessKey":   {"UserName AccessKeyId Status", "", "", false, (*IAM).updateAccessKey},
	"iam:DeleteAccessKey":   {"UserName AccessKeyId", "", "", false, (*IAM).deleteAccessKey},
	"sts:AssumeRole":        {"RoleArn RoleSessionName Policy DurationSeconds", "ExternalId", "Tags", true, (*IAM).assumeRole},
	"sts:GetCallerIdentity": {"", "", "", true, (*IAM).getCallerIdentity},
	"sts:GetSessionToken":   {"", "DurationSeconds", "", true, (*IAM).getSessionToken},
}

// What the API reference says of members' values.
var members = map[string]*regexp.Regexp{
	"UserName": regexp.MustCompile(`^[\w+=,.@-]{1,64}$`), "PolicyName": regexp.MustCompile(`^[\w+=,.@-]{1,128}$`), "RoleSessionName": regexp.MustCompile(`^[\w+=,.@-]{2,64}$`),
	"Path": regexp.MustCompile(`^(/|/[!-\x7f]+/)$`), "PathPrefix": regexp.MustCompile(`^/[!-\x7f]*$`), "AccessKeyId": regexp.MustCompile(`^\w{16,128}$`),
	"Status": regexp.MustCompile(`^(Active|Inactive)$`), "MaxItems": regexp.MustCompile(`^([1-9][0-9]{0,2}|1000)$`), "PolicyDocument": regexp.MustCompile("^[\\x09\\x0a\\x0d\\x20-\\xff]+$"),
	"Key": regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]{1,128}$`), "Value": regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]{0,256}$`), "DurationSeconds": regexp.MustCompile(`^[0-9]{3,6}$`),
}

var listMember = regexp.MustCompile(`^(Tags|TagKeys)\.member\.([1-9][0-9]?)(?:\.(Key|Value))?$`)

// check refuses a member that is missing, unknown, twice there or wrong.
func (c call) check(service string, form url.Values) *fault {
	bad := func(why string) *fault {
		return no(http.StatusBadRequest, "ValidationError", "1 validation error detected: %s", why)
	}
	if v := form.Get("Version"); v != map[string]string{"iam": "2010-05-08", "sts": "2011-06-15"}[service] {
		return no(http.StatusBadRequest, "InvalidAction", "version %q", v)
	}
	for _, name := range strings.Fields(c.required) {
		if form.Get(name) == "" {
			return bad("Value null at '" + name + "' failed to satisfy constraint: Member must not be null")
		}
	}
	plain := append(strings.Fields(c.required+" "+c.optional), "Action", "Version")
	for name, values := range form {
		key, list := name, listMember.FindStringSubmatch(name)
		switch {
		case len(values) != 1:
			return bad(name + " is there twice")
		case list != nil && slices.Contains(strings.Fields(c.lists), list[1]) && (list[1] == "Tags") == (list[3] != ""):
			key = cmp.Or(list[3], "Key")
		case !slices.Contains(plain, name):
			return bad("the member " + name + " is unknown")
		}
		if re := members[key]; re != nil && !re.MatchString(values[0]) {
			return bad("Value '" + values[0] + "' at '" + name + "' failed to satisfy constraint")
		}
	}
	return nil
}

// authorise names the resource as IAM does: by its path where the user exists, and
// without one where it does not.
func (s *IAM) authorise(who caller, service, action string, form url.Values) *fault {
	f, resource := facts{}, "arn:aws:iam::"+Account+":user"
	switch {
	case action == "GetCallerIdentity":
		return nil // needs no right, and no denial takes it away
	case action == "GetSessionToken":
		for _, set := range who.documents { // needs no right, but can be denied
			if _, denied := judge(set, "sts:GetSessionToken", "*", facts{"aws:CurrentTime": time.Now().UTC().Format(time.RFC3339Nano)}); denied || who.token {
				return who.denied("sts:GetSessionToken", "*")
			}
		}
		return nil
	case service == "sts":
		resource = form.Get("RoleArn")
	case action == "ListUsers":
		resource += cmp.Or(form.Get("PathPrefix"), "/")
	case action == "CreateUser":
		resource += cmp.Or(form.Get("Path"), "/") + form.Get("UserName")
		if b := form.Get("PermissionsBoundary"); b != "" {
			f["iam:PermissionsBoundary"] = b
		}
	default:
		name := form.Get("UserName")
		if u := s.users[name]; u != nil {
			resource = u.arn()
			if u.boundary != "" {
				f["iam:PermissionsBoundary"] = u.boundary
			}
		} else {
			resource += "/" + name
		}
	}
	if !who.may(service+":"+action, resource, f) {
		return who.denied(service+":"+action, resource)
	}
	if action == "CreateUser" && form.Get("Tags.member.1.Key") != "" && !who.may("iam:TagUser", resource, facts{}) {
		return who.denied("iam:TagUser", resource)
	}
	return nil
}

func (s *IAM) find(f url.Values) (*iamUser, *fault) {
	if u := s.users[f.Get("UserName")]; u != nil {
		return u, nil
	}
	return nil, no(http.StatusNotFound, "NoSuchEntity", "The user with name %s cannot be found.", f.Get("UserName"))
}

func tagsOf(f url.Values) (map[string]string, *fault) {
	out := map[string]string{}
	for n := 1; ; n++ {
		at := "Tags.member." + strconv.Itoa(n)
		if !f.Has(at + ".Key") {
			return out, nil
		}
		key := f.Get(at + ".Key")
		if _, twice := out[key]; twice || !f.Has(at+".Value") || strings.HasPrefix(strings.ToLower(key), "aws:") {
			return nil, no(http.StatusBadRequest, "InvalidInput", "Duplicate, reserved or incomplete tag %s", key)
		}
		out[key] = f.Get(at + ".Value")
	}
}

func (u *iamUser) text(whole bool) string {
	out := "<Path>" + escape(u.path) + "</Path><UserName>" + escape(u.name) + "</UserName><UserId>" + u.id + "</UserId><Arn>" + escape(u.arn()) + "</Arn><CreateDate>" + u.created.UTC().Format(time.RFC3339) + "</CreateDate>"
	if !whole { // ListUsers shows neither
		return out
	}
	if u.boundary != "" {
		out += "<PermissionsBoundary><PermissionsBoundaryType>Policy</PermissionsBoundaryType><PermissionsBoundaryArn>" + escape(u.boundary) + "</PermissionsBoundaryArn></PermissionsBoundary>"
	}
	if len(u.tags) > 0 {
		out += "<Tags>"
		for _, k := range slices.Sorted(maps.Keys(u.tags)) {
			out += "<member><Key>" + escape(k) + "</Key><Value>" + escape(u.tags[k]) + "</Value></member>"
		}
		out += "</Tags>"
	}
	return out
}

func (s *IAM) createUser(_ caller, f url.Values) (string, *fault) {
	name := f.Get("UserName")
	for taken := range s.users {
		if strings.EqualFold(taken, name) {
			return "", no(http.StatusConflict, "EntityAlreadyExists", "User with name %s already exists.", name)
		}
	}
	if len(s.users) >= s.quota {
		return "", no(http.StatusConflict, "LimitExceeded", "Cannot exceed quota for UsersPerAccount: %d", s.quota)
	}
	if b := f.Get("PermissionsBoundary"); b != "" && b != BoundaryARN {
		return "", no(http.StatusNotFound, "NoSuchEntity", "Scope ARN: %s does not exist or is not attachable.", b)
	}
	tags, bad := tagsOf(f)
	if bad != nil {
		return "", bad
	}
	u := &iamUser{name: name, path: cmp.Or(f.Get("Path"), "/"), id: "AIDA" + rand.Text()[:17], created: time.Now(), boundary: f.Get("PermissionsBoundary"), tags: tags, policies: map[string]string{}}
	s.users[name] = u
	return "<User>" + u.text(true) + "</User>", nil
}

func (s *IAM) getUser(_ caller, f url.Values) (string, *fault) {
	u, bad := s.find(f)
	if bad == nil && s.isStale("GetUser") {
		bad = no(http.StatusNotFound, "NoSuchEntity", "The user with name %s cannot be found.", u.name)
	}
	if bad != nil {
		return "", bad
	}
	return "<User>" + u.text(true) + "</User>", nil
}

func (s *IAM) deleteUser(_ caller, f url.Values) (string, *fault) {
	u, bad := s.find(f)
	switch {
	case bad != nil:
		return "", bad
	case len(s.keysOf(u.name)) > 0:
		return "", no(http.StatusConflict, "DeleteConflict", "Cannot delete entity, must delete access keys first.")
	case len(u.policies) > 0:
		return "", no(http.StatusConflict, "DeleteConflict", "Cannot delete entity, must delete policies first.")
	case u.attached > 0:
		return "", no(http.StatusConflict, "DeleteConflict", "Cannot delete entity, must detach all policies first.")
	}
	delete(s.users, u.name)
	return "", nil
}

// page cuts a sorted list.
func page(all []string, f url.Values) (part []string, tail string) {
	n, err := strconv.Atoi(f.Get("MaxItems"))
	if err != nil {
		n = 100
	}
	slices.Sort(all)
	all = slices.DeleteFunc(all, func(v string) bool { return v <= f.Get("Marker") && f.Get("Marker") != "" })
	if len(all) <= n {
		return all, "<IsTruncated>false</IsTruncated>"
	}
	return all[:n], "<IsTruncated>true</IsTruncated><Marker>" + escape(all[n-1]) + "</Marker>"
}

func (s *IAM) listUsers(_ caller, f url.Values) (string, *fault) {
	var names []string
	for name, u := range s.users {
		if strings.HasPrefix(u.path, f.Get("PathPrefix")) {
			names = append(names, name)
		}
	}
	part, tail := page(names, f)
	out := "<Users>"
	for _, name := range part {
		out += "<member>" + s.users[name].text(false) + "</member>"
	}
	return out + "</Users>" + tail, nil
}

func (s *IAM) tagUser(_ caller, f url.Values) (string, *fault) {
	u, bad := s.find(f)
	if bad != nil {
		return "", bad
	}
	tags, bad := tagsOf(f)
	if bad != nil {
		return "", bad
	}
	maps.Copy(u.tags, tags)
	if len(u.tags) > 50 {
		return "", no(http.StatusConflict, "LimitExceeded", "Cannot exceed quota for TagsPerUser: 50")
	}
	return "", nil
}

func (s *IAM) untagUser(_ caller, f url.Values) (string, *fault) {
	u, bad := s.find(f)
	if bad != nil {
		return "", bad
	}
	for n := 1; f.Has("TagKeys.member." + strconv.Itoa(n)); n++ {
		delete(u.tags, f.Get("TagKeys.member."+strconv.Itoa(n)))
	}
	return "", nil
}

func (s *IAM) putUserPolicy(_ caller, f url.Values) (string, *fault) {
	u, bad := s.find(f)
	if bad != nil {
		return "", bad
	}
	text := f.Get("PolicyDocument")
	if _, err := readPolicy(text); err != nil {
		return "", no(http.StatusBadRequest, "MalformedPolicyDocument", "%v", err)
	}
	size := len(text)
	for name, p := range u.policies {
		if name != f.Get("PolicyName") {
			size += len(p)
		}
	}
	if size > 2048 {
		return "", no(http.StatusConflict, "LimitExceeded", "Maximum policy size of 2048 bytes exceeded for user %s", u.name)
	}
	u.policies[f.Get("PolicyName")] = text
	return "", nil
}

func (s *IAM) getUserPolicy(_ caller, f url.Values) (string, *fault) {
	u, bad := s.find(f)
	if bad != nil {
		return "", bad
	}
	text, ok := u.policies[f.Get("PolicyName")]
	if !ok {
		return "", no(http.StatusNotFound, "NoSuchEntity", "The user policy with name %s cannot be found.", f.Get("PolicyName"))
	}
	return "<UserName>" + escape(u.name) + "</UserName><PolicyName>" + escape(f.Get("PolicyName")) + "</PolicyName><PolicyDocument>" + strings.ReplaceAll(url.QueryEscape(text), "+", "%20") + "</PolicyDocument>", nil
}

func (s *IAM) listUserPolicies(_ caller, f url.Values) (string, *fault) {
	u, bad := s.find(f)
	if bad != nil {
		return "", bad
	}
	part, tail := page(slices.Collect(maps.Keys(u.policies)), f)
	out := "<PolicyNames>"
	for _, p := range part {
		out += "<member>" + escape(p) + "</member>"
	}
	return out + "</PolicyNames>" + tail, nil
}

func (s *IAM) deleteUserPolicy(_ caller, f url.Values) (string, *fault) {
	u, bad := s.find(f)
	if bad != nil {
		return "", bad
	}
	if _, ok := u.policies[f.Get("PolicyName")]; !ok {
		return "", no(http.StatusNotFound, "NoSuchEntity", "The user policy with name %s cannot be found.", f.Get("PolicyName"))
	}
	delete(u.policies, f.Get("PolicyName"))
	return "", nil
}

func (s *IAM) keysOf(user string) (out []*iamKey) {
	for _, k := range s.keys {
		if k.user == user && k.status != "deleted" {
			out = append(out, k)
		}
	}
	return out
}

func (s *IAM) createAccessKey(_ caller, f url.Values) (string, *fault) {
	u, bad := s.find(f)
	if bad != nil {
		return "", bad
	}
	if len(s.keysOf(u.name)) >= 2 {
		return "", no(http.StatusConflict, "LimitExceeded", "Cannot exceed quota for AccessKeysPerUser: 2")
	}
	k := &iamKey{id: "AKIA" + rand.Text()[:16], secret: rand.Text() + rand.Text()[:14], status: "Active", user: u.name, created: time.Now()}
	s.keys[k.id] = k
	return "<AccessKey><UserName>" + escape(u.name) + "</UserName><AccessKeyId>" + k.id + "</AccessKeyId><Status>Active</Status><SecretAccessKey>" + k.secret + "</SecretAccessKey><CreateDate>" +
		k.created.UTC().Format(time.RFC3339) + "</CreateDate></AccessKey>", nil
}

func (s *IAM) listAccessKeys(_ caller, f url.Values) (string, *fault) {
	u, bad := s.find(f)
	if bad != nil {
		return "", bad
	}
	out := "<UserName>" + escape(u.name) + "</UserName><AccessKeyMetadata>"
	keys := s.keysOf(u.name)
	if len(keys) > 0 && s.isStale("ListAccessKeys") {
		keys = nil
	}
	for _, k := range keys {
		out += "<member><UserName>" + escape(u.name) + "</UserName><AccessKeyId>" + k.id + "</AccessKeyId><Status>" + k.status + "</Status><CreateDate>" + k.created.UTC().Format(time.RFC3339) + "</CreateDate></member>"
	}
	return out + "</AccessKeyMetadata><IsTruncated>false</IsTruncated>", nil
}

func (s *IAM) findKey(f url.Values) (*iamKey, *fault) {
	if _, bad := s.find(f); bad != nil {
		return nil, bad
	}
	for _, k := range s.keysOf(f.Get("UserName")) {
		if k.id == f.Get("AccessKeyId") {
			return k, nil
		}
	}
	return nil, no(http.StatusNotFound, "NoSuchEntity", "The Access Key with id %s cannot be found.", f.Get("AccessKeyId"))
}

func (s *IAM) updateAccessKey(_ caller, f url.Values) (string, *fault) {
	k, bad := s.findKey(f)
	if bad != nil {
		return "", bad
	}
	k.status, k.gone = f.Get("Status"), time.Time{}
	if k.status == "Inactive" {
		k.gone = time.Now()
	}
	return "", nil
}

func (s *IAM) deleteAccessKey(_ caller, f url.Values) (string, *fault) {
	k, bad := s.findKey(f)
	if bad != nil {
		return "", bad
	}
	if k.gone.IsZero() {
		k.gone = time.Now()
	}
	k.status = "deleted"
	return "", nil
}

func credentialsText(x *iamSession) string {
	return "<Credentials><AccessKeyId>" + x.id + "</AccessKeyId><SecretAccessKey>" + x.secret + "</SecretAccessKey><SessionToken>" + x.token + "</SessionToken><Expiration>" + x.ends.UTC().Format(time.RFC3339) + "</Expiration></Credentials>"
}

func (s *IAM) session(f url.Values) *iamSession {
	n, err := strconv.Atoi(f.Get("DurationSeconds"))
	if err != nil {
		n = 43200
	}
	x := &iamSession{id: "ASIA" + rand.Text()[:16], secret: rand.Text() + rand.Text()[:14], token: rand.Text() + rand.Text(), issued: time.Now(), ends: time.Now().Add(time.Duration(n) * time.Second)}
	s.sessions[x.id] = x
	return x
}

func (s *IAM) assumeRole(_ caller, f url.Values) (string, *fault) {
	if _, err := readPolicy(f.Get("Policy")); err != nil {
		return "", no(http.StatusBadRequest, "MalformedPolicyDocument", "%v", err)
	}
	if f.Get("RoleArn") != UsersRoleARN || len(f.Get("Policy")) > 2048 {
		return "", no(http.StatusForbidden, "AccessDenied", "Not authorized to perform sts:AssumeRole")
	}
	x := s.session(f)
	x.policy, x.name = f.Get("Policy"), f.Get("RoleSessionName")
	return "<AssumedRoleUser><Arn>arn:aws:sts::" + Account + ":assumed-role/mayfly-users/" + x.name + "</Arn><AssumedRoleId>ARO123EXAMPLE123:" + x.name + "</AssumedRoleId></AssumedRoleUser>" + credentialsText(x), nil
}

func (s *IAM) getCallerIdentity(who caller, _ url.Values) (string, *fault) {
	return "<Arn>" + escape(who.arn) + "</Arn><UserId>AIDACKCEVSQ6C2EXAMPLE</UserId><Account>" + Account + "</Account>", nil
}

func (s *IAM) getSessionToken(who caller, f url.Values) (string, *fault) {
	x := s.session(f)
	x.user = who.user
	return credentialsText(x), nil
}

// bucket plays S3: it has every object, and looks at nothing but policies.
func (s *IAM) bucket(r *http.Request, who caller) (string, *fault) {
	bucket, object, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	action, resource, f := "s3:"+map[string]string{http.MethodGet: "GetObject", http.MethodPut: "PutObject", http.MethodDelete: "DeleteObject"}[r.Method], "arn:aws:s3:::"+bucket+"/"+object, facts{}
	if object == "" {
		action, resource = "s3:ListBucket", "arn:aws:s3:::"+bucket
		if r.URL.Query().Has("prefix") {
			f["s3:prefix"] = r.URL.Query().Get("prefix")
		}
	}
	if !who.may(action, resource, f) {
		return "", no(http.StatusForbidden, "AccessDenied", "Access Denied")
	}
	return "content of " + r.URL.Path, nil
}
