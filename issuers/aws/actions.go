package aws

import (
	"fmt"
	"regexp"
	"strings"
)

// level says what of S3 an action acts on, and so which ARNs can allow it.
type level int

const (
	onObject  level = iota
	onBucket        // the bucket as a whole
	onListing       // the bucket, narrowed by the prefix that is listed
	onService       // no bucket at all
)

// s3Actions are the actions of S3 that scopes may name, as S3 spells them: IAM
// takes any case, others that speak its protocol do not.
var s3Actions = index(map[level]string{
	onObject: "GetObject GetObjectVersion GetObjectTagging GetObjectVersionTagging GetObjectAttributes GetObjectVersionAttributes GetObjectAcl GetObjectVersionAcl " +
		"GetObjectRetention GetObjectLegalHold PutObject PutObjectAcl PutObjectVersionAcl PutObjectTagging PutObjectVersionTagging PutObjectRetention PutObjectLegalHold " +
		"DeleteObject DeleteObjectVersion DeleteObjectTagging DeleteObjectVersionTagging BypassGovernanceRetention RestoreObject " +
		"AbortMultipartUpload ListMultipartUploadParts",
	onBucket: "CreateBucket DeleteBucket GetBucketLocation GetBucketVersioning PutBucketVersioning GetBucketTagging PutBucketTagging GetBucketPolicy GetBucketPolicyStatus " +
		"PutBucketPolicy DeleteBucketPolicy GetBucketAcl PutBucketAcl GetBucketLogging PutBucketLogging GetBucketNotification PutBucketNotification GetBucketCors PutBucketCors " +
		"GetLifecycleConfiguration PutLifecycleConfiguration GetEncryptionConfiguration PutEncryptionConfiguration GetReplicationConfiguration PutReplicationConfiguration " +
		"GetBucketObjectLockConfiguration PutBucketObjectLockConfiguration GetBucketOwnershipControls PutBucketOwnershipControls GetBucketPublicAccessBlock " +
		"PutBucketPublicAccessBlock ListBucketMultipartUploads",
	onListing: "ListBucket ListBucketVersions",
	onService: "ListAllMyBuckets",
})

type s3Action struct {
	name  string // as S3 spells it, with its service
	level level
}

func index(lists map[level]string) map[string]s3Action {
	out := map[string]s3Action{}
	for l, names := range lists {
		for _, n := range strings.Fields(names) {
			out["s3:"+strings.ToLower(n)] = s3Action{"s3:" + n, l}
		}
	}
	return out
}

var actionPattern = regexp.MustCompile(`^([a-z0-9-]{1,63}):([a-z0-9]{2,128})$`)

// identityServices make, keep or join identities.
var identityServices = map[string]bool{
	"iam": true, "sts": true, "sso": true, "sso-directory": true, "sso-oauth": true, "identitystore": true, "organizations": true, "account": true,
	"rolesanywhere": true, "ram": true, "signin": true, "cognito-idp": true, "cognito-identity": true, "aws-portal": true,
}

var (
	// onlyLooks are verbs that change nothing.
	onlyLooks = regexp.MustCompile(`^(get|list|describe|simulate|generate|decode)`)
	// handsOut are actions whose answer is a secret with a life of its own.
	handsOut = regexp.MustCompile(`^((get|create|generate|issue).*(token|tokens|tokenforrole|credential|credentials|credentialsforidentity|credentialswithiam|password|accesskey)|` +
		`assume.*|(start|resume).*session|send.*sshpublickey|(db)?connect(admin)?)$`)
	// opensFor are actions that let somebody in whom the lease's end does not shut out.
	opensFor = regexp.MustCompile(`^(put|set|add|attach|create|update|modify|delete|remove|authorize|associate|import).*(policy|policies|permission|permissions|acl|acls|grant|grants|keypair|principals?|publicaccessblock|ownershipcontrols|accesspoint)$`)
	// runsAs are actions whose code goes on running as somebody else.
	runsAs = regexp.MustCompile(`^(createfunction|updatefunctioncode|updatefunctionconfiguration|passrole|putbucketnotification|putreplicationconfiguration)`)
)

// outlasts says whether an action's effect can outlast the lease, as far as its
// name tells (HAZARDS 10): it hands out a secret, or opens a door for others.
func outlasts(service, name string) bool {
	if identityServices[service] && !onlyLooks.MatchString(name) {
		return true
	}
	return handsOut.MatchString(name) || opensFor.MatchString(name) || runsAs.MatchString(name)
}

// checkAction returns an action as the policy spells it.
func (sp *spec) checkAction(action string) (string, error) {
	m := actionPattern.FindStringSubmatch(action)
	if m == nil {
		return "", fmt.Errorf("actions: %q must be one action in lower case, as in s3:getobject or dynamodb:query; there are no wildcards", clip(action))
	}
	if !sp.LastingActions && outlasts(m[1], m[2]) {
		return "", fmt.Errorf("actions: %s can outlast the lease: it hands out a secret, opens a door or runs code; the target allows such actions with lasting_actions: true", action)
	}
	if m[1] != "s3" {
		return action, nil
	}
	known, ok := s3Actions[action]
	if !ok {
		return "", fmt.Errorf("actions: %s is no action of S3 that is known here; allowed are those on objects and buckets in the target's page, as in s3:getobject, s3:putobject, s3:listbucket", action)
	}
	return known.name, nil
}
