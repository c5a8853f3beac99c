package audit

import (
	"context"
	"io"

	"github.com/mayfly-broker/mayfly/broker/audit/tree"
	"github.com/mayfly-broker/mayfly/broker/fault"
)

// ExportOptions says what to export.
type ExportOptions struct {
	// From and To are the entries [From, To). To 0 means up to the checkpoint.
	From, To int64
	// Keys are the cluster's verifier keys; at least one must have signed the
	// checkpoint.
	Keys []string
}

// Export writes entries as JSON lines: a header, one line each, and a closing line
// with the signed checkpoint, with the hashes that prove a part of the log where
// it is not the whole. It streams: memory holds one entry. It recomputes the root
// as it goes and does not write the closing line over entries that do not match
// the tree, so that what was written then verifies as cut short. Errors: a
// [fault.Invalid] for a range outside the checkpoint; a [*Defect]; what src or w
// returned.
func Export(ctx context.Context, w io.Writer, src Source, opts ExportOptions) (Checkpoint, error) {
	signed, msg, err := openSource(ctx, src, opts.Keys, 1)
	if err != nil {
		return Checkpoint{}, err
	}
	to := opts.To
	if to == 0 {
		to = signed.Size
	}
	if opts.From < 0 || opts.From > to || to > signed.Size {
		return Checkpoint{}, invalid("The signed log has entries 0 to %d; asked for %d up to %d.", signed.Size-1, opts.From, to)
	}
	cluster, incarnation, ok := ParseOrigin(signed.Origin)
	if !ok {
		return Checkpoint{}, (&Defect{Seq: -1, Code: "checkpoint", Detail: "The checkpoint's origin is not one of this program's."}).fault()
	}
	left, err := tree.Left(src, opts.From)
	if err != nil {
		return Checkpoint{}, err
	}
	right, err := tree.Right(src, to, signed.Size)
	if err != nil {
		return Checkpoint{}, err
	}
	header := headerLine{Format, cluster, incarnation, opts.Keys, opts.From, to, left}
	if err := writeLine(w, header); err != nil {
		return Checkpoint{}, err
	}
	span, err := tree.NewSpan(opts.From, left)
	if err != nil {
		return Checkpoint{}, err
	}
	for seq := opts.From; seq < to; seq++ {
		if err := exportEntry(ctx, w, src, seq, span); err != nil {
			return Checkpoint{}, err
		}
	}
	if err := span.Close(signed.Size, right); err != nil {
		return Checkpoint{}, err
	}
	if span.Root() != signed.Root {
		return Checkpoint{}, (&Defect{Seq: -1, Code: "root", Detail: "The entries in this ledger do not make the root that was signed: the export was not completed."}).fault()
	}
	return signed.Checkpoint, writeLine(w, closingLine{string(msg), right})
}

func openSource(ctx context.Context, src Source, vkeys []string, quorum int) (Signed, []byte, error) {
	keys, err := ParseKeys(vkeys)
	if err != nil {
		return Signed{}, nil, err
	}
	msg, err := src.Checkpoint(ctx)
	if err != nil {
		return Signed{}, nil, err
	}
	signed, err := OpenCheckpoint(msg, keys, quorum)
	return signed, msg, err
}

func exportEntry(ctx context.Context, w io.Writer, src Feed, seq int64, span *tree.Span) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e, err := src.Entry(ctx, seq)
	if err != nil {
		return err
	}
	if e.Seq != seq {
		return (&Defect{Seq: seq, Code: "sequence", Detail: "The ledger gave another entry than was asked for."}).fault()
	}
	line, err := encodeEntry(e, func(l entryLine) any { return l })
	if err != nil {
		return err
	}
	span.Add(tree.LeafHash(tree.LeafData(e.Result, e.Command)))
	return write(w, line)
}

func writeLine(w io.Writer, v any) error {
	line, err := encodeLine(v)
	if err != nil {
		return err
	}
	if len(line) > MaxLine {
		return invalid("A line of the export takes %d bytes; at most %d are allowed.", len(line), MaxLine)
	}
	return write(w, line)
}

func write(w io.Writer, line []byte) error {
	if _, err := w.Write(line); err != nil {
		return fault.Wrap(err, fault.Internal, "", "The export could not be written.")
	}
	return nil
}
