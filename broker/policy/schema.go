package policy

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/resolved"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"
)

//go:embed mayfly.cedarschema
var schemaText string

//go:embed dev.cedar
var devText string

// Schema returns the Cedar schema that policies are checked against.
func Schema() []byte { return []byte(schemaText) }

// DevPolicy returns the policy of a development node: human:operator may do
// everything but approve a grant in which it has a part.
func DevPolicy() Source { return Source{Name: "dev.cedar", Text: devText} }

// principalTypes maps a principal's kind to its entity type.
var principalTypes = map[string]types.EntityType{
	"workload": "Workload", "agent": "Agent", "human": "Human", "node": "Node",
}

const (
	actionType    types.EntityType = "Action"
	claimsType    types.EntityType = "Claims"
	groupType     types.EntityType = "Group"
	principalType types.EntityType = "Principal"
	targetType    types.EntityType = "Target"
	zoneType      types.EntityType = "Zone"
)

// vocabulary is the schema, resolved: what policies and requests may name.
type vocabulary struct {
	schema    *resolved.Schema
	validator *validate.Validator
	context   resolved.RecordType
	actions   []string // sorted
	entities  []string // sorted, without Claims, which no policy names
}

func newVocabulary() (*vocabulary, error) {
	var parsed schema.Schema
	parsed.SetFilename("mayfly.cedarschema")
	if err := parsed.UnmarshalCedar([]byte(schemaText)); err != nil {
		return nil, fmt.Errorf("parse schema: %w", err)
	}
	res, err := parsed.Resolve()
	if err != nil {
		return nil, fmt.Errorf("resolve schema: %w", err)
	}
	v := &vocabulary{schema: res, validator: validate.New(res)}
	for uid, action := range res.Actions {
		v.actions = append(v.actions, string(uid.ID))
		if action.AppliesTo == nil {
			return nil, fmt.Errorf("action %s applies to nothing", uid)
		}
		v.context = action.AppliesTo.Context // one and the same for all
	}
	for kind := range res.Entities {
		if kind != claimsType {
			v.entities = append(v.entities, string(kind))
		}
	}
	slices.Sort(v.actions)
	slices.Sort(v.entities)
	return v, nil
}

// appliesTo reports whether the action may be done by and to these.
func (v *vocabulary) appliesTo(action types.EntityUID, principal, resource types.EntityType) bool {
	a, ok := v.schema.Actions[action]
	return ok && a.AppliesTo != nil &&
		slices.Contains(a.AppliesTo.Principals, principal) && slices.Contains(a.AppliesTo.Resources, resource)
}

// canBeIn reports whether the schema lets an entity of kind child be in one of
// kind parent.
func (v *vocabulary) canBeIn(child, parent types.EntityType) bool {
	return slices.Contains(v.schema.Entities[child].ParentTypes, parent)
}

// attributes returns what the expression root.path... has, and false when it is
// not a record or an entity whose attributes are known here.
func (v *vocabulary) attributes(root string, path []string) (resolved.RecordType, bool) {
	var at resolved.RecordType
	switch root {
	case "context":
		at = v.context
	case "principal":
		at = v.schema.Entities[principalTypes["human"]].Shape // all four have the same
	case "resource":
		at = v.schema.Entities[targetType].Shape // all kinds have the same
	default:
		return nil, false
	}
	for _, name := range path {
		next, ok := at[types.String(name)].Type.(resolved.RecordType)
		if !ok {
			return nil, false
		}
		at = next
	}
	return at, true
}

// names lists a record's attributes for a message.
func names(r resolved.RecordType) string {
	list := make([]string, 0, len(r))
	for name := range r {
		list = append(list, string(name))
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}
