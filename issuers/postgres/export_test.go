package postgres

// StockReady returns how many verifiers lie ready; for benchmarks.
func (is *Issuer) StockReady() int { return len(is.stock.ready) }
