package replay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/mayfly-broker/mayfly/broker/audit"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// Bounds of what a report lists; what is beyond is counted. Memory stays bounded
// whatever stands in the export.
const (
	MaxDefects   = 1000    // the first one is the cause, and most others follow from it
	MaxApprovals = 100_000 // years of a busy cluster
	MaxKeys      = 10_000
	MaxEmergency = 1000 // unreviewed emergencies
)

// Options is whom to trust, and where to work.
type Options struct {
	// Options of the chain. Describe and Follow are this package's own.
	audit.Options
	// Dir is where the state is kept while it is being made, about as large as the
	// export; "" is the system's directory for temporary files.
	Dir string
	// Progress, where set, is told now and then how many of the entries are done.
	Progress func(done, total int64)
}

// A Report is what the chain proves, and what executing it again has shown.
type Report struct {
	Chain audit.Report
	// Result is nil where the export does not begin at the genesis record: then
	// nothing was executed, and of co-signatures nothing is known.
	Result *Result
}

// Holds reports whether the whole ledger was executed again and every entry
// agreed. The chain holds wherever there is a Report without an error.
func (r Report) Holds() bool {
	return r.Result != nil && len(r.Result.Defects) == 0 && r.Result.Stopped == ""
}

// Describe reads an audit summary out of a command's public part.
func Describe(outcome string, command []byte) (audit.Summary, error) {
	s, _, err := describe(outcome, command)
	return s, err
}

func describe(outcome string, command []byte) (audit.Summary, ledger.Decoded, error) {
	_, ms, err := ledger.SplitOutcome(outcome)
	if err != nil {
		return audit.Summary{}, ledger.Decoded{}, err
	}
	d, err := ledger.DecodePublic(command)
	return audit.Summary{Time: at(ms), Type: d.Type, Actor: d.Header.Actor.Principal, DecisionID: d.Header.DecisionID}, d, err
}

func at(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// Verify checks an export as [audit.VerifyExport] does, and executes it again.
// Errors: what VerifyExport returned; ctx's; a [fault.Internal] where the state
// cannot be kept. Entries that disagree are no error: see [Report.Holds].
func Verify(ctx context.Context, r io.Reader, opts Options) (report Report, err error) {
	st, err := openStore(opts.Dir)
	if err != nil {
		return Report{}, fault.Wrap(err, fault.Internal, "no_space_to_replay", "The state of the replay cannot be kept: %v. TMPDIR names another directory.", err)
	}
	defer func() { err = errors.Join(err, st.close()) }()
	a := &auditor{store: st, replayer: ledger.NewReplayer(st), progress: opts.Progress, out: newResult()}
	opts.Describe = a.describe
	opts.Follow = func(e audit.Entry, to int64) error {
		if ctx.Err() != nil {
			return fault.Wrap(ctx.Err(), fault.Internal, "interrupted", "The verification was interrupted at entry %d.", e.Seq)
		}
		return a.follow(e, to)
	}
	if report.Chain, err = audit.VerifyExport(r, opts.Options); err != nil {
		return report, err
	}
	if report.Chain.From > 0 || report.Chain.To == 0 {
		return report, nil
	}
	report.Result = a.finish(report.Chain)
	return report, nil
}

// auditor follows the entries of one export.
type auditor struct {
	store    *store
	replayer *ledger.Replayer
	progress func(done, total int64)
	last     ledger.Decoded // of the entry at hand
	out      *Result
}

// describe keeps what it decodes, so that no command is decoded twice.
func (a *auditor) describe(outcome string, command []byte) (s audit.Summary, err error) {
	s, a.last, err = describe(outcome, command)
	return s, err
}

// progressEvery is how many entries pass between two words about them.
const progressEvery = 1000

// follow executes one entry again and compares.
func (a *auditor) follow(e audit.Entry, to int64) error {
	if a.progress != nil && (e.Seq%progressEvery == 0 || e.Seq == to-1) {
		a.progress(e.Seq+1, to)
	}
	if a.out.Stopped != "" || e.Seq != int64(a.replayer.Query().Size()) {
		return nil // a part of the log, or behind what cannot be executed
	}
	a.out.Entries++
	a.execute(e)
	if err := a.store.step(); err != nil && !errors.Is(err, errBounds) {
		return fault.Wrap(err, fault.Internal, "no_space_to_replay", "The state of the replay cannot be kept: %v. TMPDIR names another directory.", err)
	}
	return nil
}

func (a *auditor) execute(e audit.Entry) {
	code, ms, _ := ledger.SplitOutcome(e.Result) // describe has read it
	before := check{Query: a.replayer.Query(), ms: ms, roles: map[string]*ledger.RoleSpec{}}
	var doubts []doubt
	if code == ledger.CodeOK {
		doubts = before.entry(a.last)
	}
	note := a.note(before)
	res, err := a.replayer.Apply(a.last, e.Result)
	switch {
	case a.store.err != nil && !errors.Is(a.store.err, errBounds):
		return // the disk's fault; follow says so
	case a.store.err != nil:
		err = errBounds
	case err == nil:
		err = before.Err()
	}
	if err != nil {
		a.out.Stopped = fmt.Sprintf("Entry %d cannot be executed: every node would have stopped there. Nothing after it was checked.", e.Seq)
		a.out.defect(e.Seq, "unreadable", fmt.Sprintf("%s: %v.", a.last.Type, err))
		return
	}
	if res.Code != code || res.TimeMS != ms {
		a.out.defect(e.Seq, "outcome", differs(a.last.Type, code, ms, res))
	}
	if code != ledger.CodeOK {
		a.out.Refused++
	}
	if res.SizeAssumed {
		a.out.SizeAssumed++
	}
	if res.Replayed {
		return // an idempotent repeat did nothing
	}
	for _, d := range doubts {
		a.out.defect(e.Seq, d.code, d.text)
	}
	if res.OK() {
		note(e.Seq)
	}
}

func differs(typ, code string, ms int64, res ledger.Replayed) string {
	switch {
	case res.TimeMS != ms && res.Code != code:
		return fmt.Sprintf("%s is recorded as %s at %s; the rules give %s at %s.%s", typ, code, at(ms).Format(time.RFC3339Nano), res.Code, at(res.TimeMS).Format(time.RFC3339Nano), because(res))
	case res.TimeMS != ms:
		return fmt.Sprintf("%s is recorded at %s; the rules give %s.", typ, at(ms).Format(time.RFC3339Nano), at(res.TimeMS).Format(time.RFC3339Nano))
	}
	return fmt.Sprintf("%s is recorded as %s; the rules give %s.%s", typ, code, res.Code, because(res))
}

func because(res ledger.Replayed) string {
	if res.Detail == "" {
		return ""
	}
	return " " + res.Detail
}

// finish compares the genesis record with what was signed, and counts what is left.
func (a *auditor) finish(chain audit.Report) *Result {
	q := a.replayer.Query()
	g, ok := q.Genesis()
	switch id, err := audit.KeyID(g.VerifierKey); {
	case !ok: // its own outcome says why
	case g.Cluster != chain.ClusterID || uint64(g.Incarnation) != chain.Incarnation:
		a.out.defect(0, "genesis", fmt.Sprintf("The log is signed as cluster %s, incarnation %d; its genesis record is of %s, %d.", chain.ClusterID, chain.Incarnation, g.Cluster, g.Incarnation))
	case err != nil:
		a.out.defect(0, "genesis", "The genesis record names no key that could sign checkpoints.")
	case !slices.Contains(chain.SignedBy, id):
		a.out.defect(0, "genesis", fmt.Sprintf("The checkpoint is not signed by %s, the key that the genesis record names.", id))
	}
	a.out.close(check{Query: q, ms: q.Clock()})
	return a.out
}
