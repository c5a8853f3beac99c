package mysql

// Elsewhere has the issuer believe that its server is not on this machine.
func (is *Issuer) Elsewhere() { is.spec.host = "db.internal" }
